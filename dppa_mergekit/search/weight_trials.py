"""What is set in a search for weights: a whole merge of several fine-tuned models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.ratios import Items, Scores
from dppa_mergekit.search.candidates import Settings, one_number

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHARED = "weight"
"""The name of the one weight that all models share."""


@dataclass(frozen=True)
class LiveWeights:
    """A merge in memory whose weights can be set; see `LiveMerge`.

    Attributes:
        recipe: The recipe of the merge.
        workspace: A folder on a disk that has room for the merged model.
        placement: Where and how the merge is held.
        shared: Whether all models share one weight.
    """

    recipe: Recipe
    workspace: Path
    placement: Placement = AS_STORED
    shared: bool = False

    @cached_property
    def _merge(self) -> WeightedMerge:
        return WeightedMerge.load(self.recipe, self.workspace, self.placement)

    def parameters(self) -> list[str]:
        """Return what has a weight."""
        return _weight_names(self.recipe, self.shared)

    def apply(self, settings: Settings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Write the merge with weights; return the live model and its tokenizer."""
        self._merge.set_weights(weights_of(self.recipe, settings))
        return self._merge.model, self._merge.tokenizer


@dataclass(frozen=True)
class FolderWeights:
    """A merge that is made anew for every candidate; see `FolderMerge`.

    Attributes:
        recipe: The recipe of the merge.
        shared: Whether all models share one weight.
    """

    recipe: Recipe
    shared: bool = False

    def parameters(self) -> list[str]:
        """Return what has a weight."""
        return _weight_names(self.recipe, self.shared)

    def recipe_with(self, settings: Settings) -> Recipe:
        """Return the recipe of the merge with weights."""
        return self.recipe.with_weights(weights_of(self.recipe, settings))


def weights_of(recipe: Recipe, settings: Settings) -> dict[str, float]:
    """Return fine-tuned model -> weight, also where all models share one."""
    weights = {name: one_number(weight) for name, weight in settings.items()}
    return dict.fromkeys(recipe.fine_tuned(), weights[SHARED]) if SHARED in weights else weights


def score_best(
    models: Sequence[str], items: Items, score: Callable[[str, Items], Scores]
) -> Scores:
    """Score all models on the same tasks; return the best score of each task.

    Args:
        models: The models, at least one.
        items: The items to score them on.
        score: Scores one model.
    """
    of_models = [score(model, items) for model in models]
    return {
        task: max((scores[task] for scores in of_models), key=lambda score: score.value)
        for task in of_models[0]
    }


def _weight_names(recipe: Recipe, shared: bool) -> list[str]:
    return [SHARED] if shared else recipe.fine_tuned()
