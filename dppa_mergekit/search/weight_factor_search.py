"""Weights and factors by evaluation: a search for the weights of a merge, then for its factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.search.candidates import (
    MakeCandidates,
    Settings,
    one_number,
    weight_factor_candidates,
)
from dppa_mergekit.search.merge_factor_search import (
    MERGE_FACTOR_OPTIONS,
    FolderMergeFactors,
    LiveMergeFactors,
    factors_by_rate,
    with_factors,
)
from dppa_mergekit.search.merge_search import MergeSearch
from dppa_mergekit.search.recipe_search import check_has_factors
from dppa_mergekit.search.results import MERGE
from dppa_mergekit.search.strategies import BOTH
from dppa_mergekit.search.weight_search import (
    WEIGHT_OPTIONS,
    check_weighted,
    is_normalized,
    starting_weights,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHT_FACTOR_OPTIONS = replace(WEIGHT_OPTIONS, strategy=BOTH)
"""How weights and factors are searched by default; the range is that of the weights."""


@dataclass(frozen=True)
class LiveWeightsAndFactors(LiveMergeFactors):
    """A merge in memory whose weights and factors can be set; see `LiveMerge`."""

    def parameters(self) -> list[str]:
        """Return the models, then model and factor of every partition."""
        return [*self.recipe.fine_tuned(), *super().parameters()]

    def apply(self, settings: Settings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Write the merge with weights, and factors if there are any."""
        weights, factors = split_settings(self.recipe, settings)
        if factors:
            self._merge.set_both(weights, factors_by_rate(factors))
        else:
            self._merge.set_weights(weights)
        return self._merge.model, self._merge.tokenizer


@dataclass(frozen=True)
class FolderWeightsAndFactors(FolderMergeFactors):
    """A merge that is made anew for every candidate; see `FolderMerge`."""

    def parameters(self) -> list[str]:
        """Return the models, then model and factor, which one merge reveals."""
        return [*self.recipe.fine_tuned(), *super().parameters()]

    def recipe_with(self, settings: Settings) -> Recipe:
        """Return the recipe of the merge with weights and factors."""
        return with_both(self.recipe, settings)


@dataclass(frozen=True)
class WeightFactorSearch(MergeSearch):
    """A search for the weights of a merge, and then for its factors; see `MergeSearch`."""

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded.

        Raises:
            DppaError: As for every recipe search; or the method has no factors, or weights that
                cannot be tuned.
        """
        check_has_factors(self.recipe)
        check_weighted(self.recipe, self.options, False, BOTH)
        super().check()

    def candidates(self) -> MakeCandidates:
        """Start from the recipe as it is."""
        weights = starting_weights(self.recipe, shared=False)
        return weight_factor_candidates(weights, is_normalized(self.recipe), MERGE_FACTOR_OPTIONS)

    def live_merge(self) -> LiveWeightsAndFactors:
        """Return the merge in memory."""
        return LiveWeightsAndFactors(self.recipe, self.workspace, self.placement)

    def folder_merge(self) -> FolderWeightsAndFactors:
        """Return the merge that is made anew."""
        return FolderWeightsAndFactors(self.recipe, self.workspace, self.placement.loading)

    def recipe_with(self, found: Mapping[str, Settings]) -> Recipe:
        """Return the recipe with weights and factors."""
        return with_both(self.recipe, found[MERGE])


def split_settings(recipe: Recipe, settings: Settings) -> tuple[dict[str, float], Settings]:
    """Return fine-tuned model -> weight, and model and factor -> factor."""
    models = recipe.fine_tuned()
    weights = {name: one_number(settings[name]) for name in models}
    return weights, {name: value for name, value in settings.items() if name not in weights}


def with_both(recipe: Recipe, settings: Settings) -> Recipe:
    """Return the recipe with weights, and with factors if there are any."""
    weights, factors = split_settings(recipe, settings)
    return with_factors(recipe.with_weights(weights), factors)
