"""Where the weights of a whole merge are tried: in memory, or in folders that a command scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.amplified_model import merged
from dppa_mergekit.live.source_model import Placement, Unmerged
from dppa_mergekit.live.weighted_merge import ResidentMerge
from dppa_mergekit.recipes import Recipe, Setting, at_layer
from dppa_mergekit.scoring.ratios import DomainObjective, MergeObjective, Scores
from dppa_mergekit.scoring.tasks import TasksFile
from dppa_mergekit.search.factor_trials import Items, OneByOne, Proposal, ScoreCommand, Scorer

Experts: TypeAlias = Mapping[str, Sequence[str]]
"""Model -> the tasks that it is the measure of: a domain's own, or, of the base, the guards."""

SHARED = "weight"
"""The one weight of all models."""


class _OfMerge(OneByOne):
    """What benches of a merge have in common, wherever it is scored."""

    recipe: Recipe
    shared: bool

    def parameters(self) -> list[str]:
        """What has a weight."""
        return [SHARED] if self.shared else self.recipe.tuned()

    def distilled(self, items: Items, low: float, high: float, seed: int) -> Proposal:
        """Not possible: a merge has no one teacher."""
        raise DppaError("Strategy distill is for factors; weights are tuned in one way only.")


@dataclass
class MergeBench(_OfMerge):
    """One resident merge whose weights are set in memory; loaded when it is first needed.

    Attributes:
        recipe: Of the merge.
        experts: What unmerged models are scored on.
        scorer: Of live models.
        workspace: A folder on a disk that has room for the merged model.
        placement: Where and how models are held.
        shared: Whether all models have one weight.
    """

    recipe: Recipe
    experts: Experts
    scorer: Scorer
    workspace: Path
    placement: Placement
    shared: bool = False
    _resident: ResidentMerge | None = field(default=None, init=False)

    def dense(self, items: Items) -> Scores:
        """The scores of the unmerged models, each on its own tasks."""

        def score(model: str, own: Items) -> Scores:
            return self.scorer.score(*Unmerged(model, self.placement).load(), own)

        return _each(self.experts, items, score)

    def score(self, factors: Mapping[str, Setting], items: Items) -> Scores:
        """The scores of the merge with weights."""
        if self._resident is None:
            where = self.placement
            self._resident = ResidentMerge.load(
                self.recipe, self.workspace, where.device, where.dtype, where.trust_remote_code
            )
        self._resident.set_weights(weights_of(self.recipe, factors))
        return self.scorer.score(self._resident.model, self._resident.tokenizer, items)


@dataclass
class FolderMergeBench(_OfMerge):
    """Merged folders, which a command of the user's scores as a whole.

    Attributes:
        recipe: Of the merge.
        experts: What unmerged models are scored on.
        command: What scores them.
        workspace: A folder on a disk that has room for the merged model.
        shared: Whether all models have one weight.
        trust_remote_code: As mergekit has it.
    """

    recipe: Recipe
    experts: Experts
    command: ScoreCommand
    workspace: Path
    shared: bool = False
    trust_remote_code: bool = False

    def dense(self, items: Items) -> Scores:
        """The scores of the unmerged models, each on its own tasks."""
        where = Placement(trust_remote_code=self.trust_remote_code)
        return _each(
            self.experts,
            items,
            lambda model, own: self.command.run(Unmerged(model, where).folder(), own),
        )

    def score(self, factors: Mapping[str, Setting], items: Items) -> Scores:
        """The scores of the merge with weights."""
        recipe = self.recipe.weighted(weights_of(self.recipe, factors))
        with merged(recipe, self.workspace, None, self.trust_remote_code) as folder:
            return self.command.run(folder, items)


def experts_of(tasks: TasksFile, recipe: Recipe) -> Experts:
    """What the fine-tuned models of a recipe, and its base, are scored on: dev tasks."""
    experts: dict[str, list[str]] = {}
    for domain in tasks.domains.values():
        experts.setdefault(recipe.named(domain.model), []).extend(domain.dev)
    if tasks.guard.dev:
        experts[str(recipe.content["base_model"])] = list(tasks.guard.dev)
    return experts


def objective_of(
    tasks: TasksFile, dense: Mapping[str, float], worst: bool, guard_loss: float
) -> MergeObjective:
    """By what merges are compared on the dev tasks of all domains.

    Args:
        tasks: The tasks file.
        dense: Task -> score of the unmerged models.
        worst: By the least Domain-Ratio, in place of the mean.
        guard_loss: The share of the base model's scores that may be lost on guard tasks.
    """
    domains = {
        name: DomainObjective({task: dense[task] for task in domain.dev})
        for name, domain in tasks.domains.items()
    }
    guard = {task: dense[task] for task in tasks.guard.dev}
    return MergeObjective(domains, worst, guard, guard_loss)


def weights_of(recipe: Recipe, found: Mapping[str, Setting]) -> dict[str, float]:
    """Fine-tuned model -> weight, where all may share one."""
    weights = {name: at_layer(weight, 0, 1) for name, weight in found.items()}
    return dict.fromkeys(recipe.tuned(), weights[SHARED]) if SHARED in weights else weights


def _each(experts: Experts, items: Items, score: Callable[[str, Items], Scores]) -> Scores:
    scores = [
        score(model, {task: items[task] for task in tasks}) for model, tasks in experts.items()
    ]
    return {task: each[task] for each in scores for task in each}
