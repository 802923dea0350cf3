"""Where the weights of a whole merge are tried: in memory, or in folders that a command scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.source_model import Placement, SourceModel
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.recipes import Recipe, Setting, at_layer
from dppa_mergekit.scoring.merge_objective import Experts, score_experts
from dppa_mergekit.scoring.ratios import Items, Scores
from dppa_mergekit.search.factor_trials import OneByOne, Proposal, ScoreCommand, Scorer

SHARED = "weight"
"""The one weight of all models."""


class _OfMerge(OneByOne):
    """What benches of a merge have in common, wherever it is scored."""

    recipe: Recipe
    shared: bool

    def parameters(self) -> list[str]:
        """What has a weight."""
        return [SHARED] if self.shared else self.recipe.fine_tuned()

    def distill(self, items: Items, low: float, high: float, seed: int) -> Proposal:
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
    _resident: WeightedMerge | None = field(default=None, init=False)

    def dense(self, items: Items) -> Scores:
        """The scores of the unmerged models, each on its own tasks."""

        def score(model: str, own: Items) -> Scores:
            return self.scorer.score(*SourceModel(model, self.placement).load(), own)

        return score_experts(self.experts, items, score)

    def score(self, factors: Mapping[str, Setting], items: Items) -> Scores:
        """The scores of the merge with weights."""
        if self._resident is None:
            where = self.placement
            self._resident = WeightedMerge.load(
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
        return score_experts(
            self.experts,
            items,
            lambda model, own: self.command.run(SourceModel(model, where).folder(), own),
        )

    def score(self, factors: Mapping[str, Setting], items: Items) -> Scores:
        """The scores of the merge with weights."""
        recipe = self.recipe.weighted(weights_of(self.recipe, factors))
        with merge_into_folder(recipe, self.workspace, None, self.trust_remote_code) as folder:
            return self.command.run(folder, items)


def weights_of(recipe: Recipe, found: Mapping[str, Setting]) -> dict[str, float]:
    """Fine-tuned model -> weight, where all may share one."""
    weights = {name: at_layer(weight, 0, 1) for name, weight in found.items()}
    return dict.fromkeys(recipe.fine_tuned(), weights[SHARED]) if SHARED in weights else weights
