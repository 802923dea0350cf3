"""A search over a whole merge: what the searches for its weights and for its factors share."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from dppa_mergekit.scoring.lm_eval_harness import Harness
from dppa_mergekit.scoring.merge_objective import experts_of, objective_of, score_experts
from dppa_mergekit.scoring.objectives import MergeObjective
from dppa_mergekit.search.candidate_search import CandidateSearch
from dppa_mergekit.search.candidates import MakeCandidates, Settings
from dppa_mergekit.search.recipe_search import Best, RecipeSearch, Scoring
from dppa_mergekit.search.results import MERGE, SearchResult
from dppa_mergekit.search.trials import (
    FolderMerge,
    FolderTrials,
    LiveMerge,
    MemoryTrials,
    Trials,
)
from dppa_mergekit.storage.journal import Journal

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergeSearch(RecipeSearch):
    """A search over a whole merge, by all domains; see `RecipeSearch`.

    Attributes:
        worst: Whether the least Domain-Ratio counts, in place of the mean.
        guard_loss: The share of the base model's score that a guard task may lose, 0 to 1.
    """

    guarded: ClassVar[bool] = True

    worst: bool = False
    guard_loss: float = 0.05

    @abstractmethod
    def candidates(self) -> MakeCandidates:
        """Return what makes the candidates."""

    @abstractmethod
    def live_merge(self) -> LiveMerge:
        """Return the merge in memory."""

    @abstractmethod
    def folder_merge(self) -> FolderMerge:
        """Return the merge that is made anew for every candidate."""

    def search(self, scoring: Scoring, journal: Journal, best: Best) -> list[SearchResult]:
        """Search; warn where guard tasks lose more than is allowed."""
        with self.open_trials(scoring) as trials_of:
            result = self.candidate_search(
                MERGE, scoring, trials_of(MERGE), journal, partial(best.__setitem__, MERGE)
            ).run()
        warn_of_lost_guards(result.lost, self.guard_loss)
        return [result]

    def candidate_search(
        self,
        domain: str,
        scoring: Scoring,
        trials: Trials,
        journal: Journal,
        best_so_far: Callable[[Settings], None],
    ) -> CandidateSearch:
        """Return the search of the merge.

        Args:
            domain: The name under which the journal keeps its evaluations.
            scoring: Scores candidates.
            trials: Scores candidates of this merge.
            journal: Keeps evaluations.
            best_so_far: Called with the best settings so far.
        """

        def objective(fine_tuned: Mapping[str, float]) -> MergeObjective:
            return objective_of(self.tasks, fine_tuned, self.worst, self.guard_loss)

        return CandidateSearch(
            domain,
            self.recipe.base,
            {task: scoring.item_count(task) for task in self.metrics()},
            trials,
            self.options,
            journal,
            objective,
            self.candidates(),
            best_so_far,
            self.batch,
            MERGE,
        )

    def trials(self, domain: str, scoring: Scoring) -> Trials:
        """Return the trials of the merge in this process."""
        references = partial(score_experts, experts_of(self.tasks, self.recipe))
        if not isinstance(scoring, Harness):
            return FolderTrials(
                self.folder_merge(),
                references,
                scoring,
                self.workspace,
                self.placement.loading,
            )
        return MemoryTrials(self.live_merge(), references, scoring, self.placement)

    def goal(self) -> dict[str, object]:
        """Return what is sought, as plain data."""
        return {"worst": self.worst, "guard_loss": self.guard_loss}

    def subject(self) -> dict[str, object]:
        """Return the inputs of the search, part by part; the journal of others is not resumed."""
        return super().subject() | {"merge": self.goal()}


def warn_of_lost_guards(lost: float, allowed: float) -> None:
    """Warn where the best merge loses more on guard tasks than is allowed.

    Args:
        lost: The share of guard scores lost beyond what is allowed.
        allowed: The share that may be lost.
    """
    if lost:
        LOG.warning(
            "Nothing was found that keeps the guard tasks: they lose more than --guard-loss %g "
            "allows.",
            allowed,
        )
