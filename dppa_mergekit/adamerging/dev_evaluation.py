"""Evaluate a live merge on the dev tasks of a tasks file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dppa_mergekit.adamerging.states import DevScore
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.live.source_model import SourceModel
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.lm_eval_harness import Harness
from dppa_mergekit.scoring.merge_objective import experts_of, objective_of, score_experts
from dppa_mergekit.scoring.ratios import Items, Scores
from dppa_mergekit.scoring.tasks import TasksFile, check_fine_tuned_scores
from dppa_mergekit.storage.journal import Journal


@dataclass(frozen=True)
class DevEvaluation:
    """Evaluation on dev tasks, relative to the models as they are before the merge.

    Attributes:
        recipe: The recipe of the merge.
        tasks: The tasks file.
        harness: lm-evaluation-harness with the dev tasks.
        placement: The device and the dtype of live models.
    """

    recipe: Recipe
    tasks: TasksFile
    harness: Harness
    placement: Placement

    def score_sources(self, journal: Journal) -> Mapping[str, float]:
        """Score the models before the merge, unless the journal already has their scores.

        Args:
            journal: An open journal; new scores are added to it.

        Returns:
            Dev task -> score of its domain's fine-tuned model, or, for a guard task, of the base.

        Raises:
            TasksError: A score is not above 0.
        """
        for entry in journal.entries:
            if isinstance(known := entry.get("dense"), dict):
                return known

        def score(model: str, items: Items) -> Scores:
            return self.harness.score(*SourceModel(model, self.placement).load(), items)

        scores = score_experts(experts_of(self.tasks, self.recipe), self._items(), score)
        sources = {task: score.value for task, score in scores.items()}
        check_fine_tuned_scores(sources)
        journal.add({"dense": sources})
        return sources

    def evaluator(
        self, merge: WeightedMerge, sources: Mapping[str, float]
    ) -> Callable[[], DevScore]:
        """Return a function that evaluates a live merge as it is when the function is called.

        Args:
            merge: The live merge.
            sources: Dev task -> score, as `score_sources` returns it.
        """
        objective = objective_of(self.tasks, sources)

        def evaluate() -> DevScore:
            scores = self.harness.score(merge.model, merge.tokenizer, self._items())
            return DevScore(
                objective.exact(scores), objective.estimate(scores), objective.parts(scores)
            )

        return evaluate

    def _items(self) -> dict[str, Sequence[int]]:
        """Dev task -> the indices of all of its items, within the limit."""
        return {task: range(self.harness.item_count(task)) for task in self.tasks.metrics("dev")}
