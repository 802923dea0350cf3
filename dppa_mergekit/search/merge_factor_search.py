"""Factors in a merge: one search for the partitions' factors of all models in the whole merge.

A combination by inputs is linear in the factors, and its equations do not depend on them: a
candidate takes one pass of combination, and no new solution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit import method_table
from dppa_mergekit.checkpoints.loading_options import DEFAULT_LOADING, LoadingOptions
from dppa_mergekit.combination.contribution import Combined
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.parameters import AMPLIFICATION_NAMES
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.recipes.references import identity
from dppa_mergekit.search.candidates import (
    MakeCandidates,
    Settings,
    merge_factor_candidates,
    one_number,
)
from dppa_mergekit.search.merge_search import MergeSearch
from dppa_mergekit.search.options import Options
from dppa_mergekit.search.recipe_search import check_has_factors
from dppa_mergekit.search.results import MERGE
from dppa_mergekit.search.strategies import MERGE_FACTORS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MERGE_FACTOR_OPTIONS = Options(strategy=MERGE_FACTORS, low=0.2, high=4.0)
"""How factors of a merge are searched by default."""


@dataclass(frozen=True)
class LiveMergeFactors:
    """A merge in memory whose factors can be set; see `LiveMerge`.

    Attributes:
        recipe: The recipe of the merge.
        workspace: A folder on a disk that has room for the merged model.
        placement: Where and how the merge is held.
    """

    recipe: Recipe
    workspace: Path
    placement: Placement = AS_STORED

    @cached_property
    def _merge(self) -> WeightedMerge:
        return WeightedMerge.load(self.recipe, self.workspace, self.placement)

    def parameters(self) -> list[str]:
        """Return model and factor of every partition."""
        return _factor_names(self._merge.rates())

    def apply(self, settings: Settings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Write the merge with factors, or as the recipe has it; return model and tokenizer."""
        if not settings:
            self._merge.restore()
            return self._merge.model, self._merge.tokenizer
        self._merge.set_factors(factors_by_rate(settings))
        return self._merge.model, self._merge.tokenizer


@dataclass(frozen=True)
class FolderMergeFactors:
    """A merge that is made anew for every candidate; see `FolderMerge`.

    Attributes:
        recipe: The recipe of the merge.
        workspace: A folder on a disk that has room for the merged model.
        loading: How models are loaded.
    """

    recipe: Recipe
    workspace: Path
    loading: LoadingOptions = DEFAULT_LOADING

    def parameters(self) -> list[str]:
        """Return model and factor of every partition, which one merge reveals."""
        found: dict[object, set[int]] = {}

        def listen(combined: Combined) -> None:
            for contribution in combined.contributions:
                rates = found.setdefault(identity(contribution.model), set())
                rates.update(contribution.pruned.pruning.rates)

        with merge_into_folder(self.recipe, self.workspace, listen, self.loading):
            pass
        return _factor_names(
            {
                model: sorted(found.get(identity(model), ()), reverse=True)
                for model in self.recipe.fine_tuned()
            }
        )

    def recipe_with(self, settings: Settings) -> Recipe:
        """Return the recipe of the merge with factors."""
        return with_factors(self.recipe, settings)


@dataclass(frozen=True)
class MergeFactorSearch(MergeSearch):
    """A search for the factors of all models in the whole merge; see `MergeSearch`."""

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded.

        Raises:
            DppaError: As for every recipe search; or the method of the recipe has no factors.
        """
        check_has_factors(self.recipe)
        if self.options.strategy != MERGE_FACTORS:
            raise DppaError(
                f"Strategy {self.options.strategy} is for the factors of one model; those of a "
                f"merge are tuned in one way only."
            )
        super().check()

    def candidates(self) -> MakeCandidates:
        """Start from the recipe as it is."""
        return merge_factor_candidates

    def live_merge(self) -> LiveMergeFactors:
        """Return the merge in memory."""
        return LiveMergeFactors(self.recipe, self.workspace, self.placement)

    def folder_merge(self) -> FolderMergeFactors:
        """Return the merge that is made anew."""
        return FolderMergeFactors(self.recipe, self.workspace, self.placement.loading)

    def recipe_with(self, found: Mapping[str, Settings]) -> Recipe:
        """Return the recipe with the factors of all models."""
        return with_factors(self.recipe, found[MERGE])


def with_factors(recipe: Recipe, settings: Settings) -> Recipe:
    """Return the recipe with factors and none that the merge finds; unchanged if there are none."""
    if settings:
        recipe = method_table.without_automatic(recipe)
    for model, factors in factors_of(settings).items():
        recipe = recipe.with_parameters(model, factors)
    return recipe


def factors_of(settings: Settings) -> dict[str, dict[str, float]]:
    """Return model -> the name of a factor -> its value."""
    found: dict[str, dict[str, float]] = {}
    for name, value in settings.items():
        model, _, factor = name.rpartition(" ")
        found.setdefault(model, {})[factor] = one_number(value)
    return found


def factors_by_rate(settings: Settings) -> dict[str, dict[int, float]]:
    """Return model -> rate -> the factor of its partition."""
    return {
        model: {
            rate: by_name[name] for rate, name in AMPLIFICATION_NAMES.items() if name in by_name
        }
        for model, by_name in factors_of(settings).items()
    }


def _factor_names(rates: Mapping[str, Sequence[int]]) -> list[str]:
    """Return the names of all factors: the model, a blank, the factor."""
    return [
        f"{model} {AMPLIFICATION_NAMES[rate]}"
        for model, of_model in rates.items()
        for rate in of_model
    ]
