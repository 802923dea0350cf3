"""Weights by evaluation: one search for the weights of all models in the whole merge."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit import method_table
from dppa_mergekit.errors import DppaError, RecipeError
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.parameters import normalize
from dppa_mergekit.recipes.inputs import values_in
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.search.candidate_search import CandidateSearch
from dppa_mergekit.search.candidates import MakeCandidates, Settings, weight_candidates
from dppa_mergekit.search.merge_search import MergeSearch
from dppa_mergekit.search.options import Options
from dppa_mergekit.search.results import MERGE, SearchResult
from dppa_mergekit.search.strategies import WEIGHTS
from dppa_mergekit.search.trials import CallableScorer, MemoryTrials
from dppa_mergekit.search.weight_trials import FolderWeights, LiveWeights, score_best, weights_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# These names are mergekit's own; those of this package stand in `method_table`.
MERGEKIT_METHODS = (
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "breadcrumbs_ties",
    "della",
    "della_linear",
)
"""Methods of mergekit whose weights can be tuned, beside those of this package."""

NORMALIZED = ("ties", "della")
"""Those that divide by the sum of the weights by default (mergekit 0.1.5)."""

WEIGHT_OPTIONS = Options(strategy=WEIGHTS, low=0.0, high=1.5)
"""How weights are searched by default."""


@dataclass(frozen=True)
class WeightSearch(MergeSearch):
    """A search for the weights of a whole merge; see `MergeSearch`.

    Attributes:
        shared: Whether all models share one weight.
    """

    shared: bool = False

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded.

        Raises:
            DppaError: As for every recipe search; or the weights of the recipe cannot be tuned.
        """
        check_weighted(self.recipe, self.options, self.shared)
        super().check()

    def candidates(self) -> MakeCandidates:
        """Start from the weights of the recipe."""
        return weight_candidates(
            starting_weights(self.recipe, self.shared), is_normalized(self.recipe)
        )

    def live_merge(self) -> LiveWeights:
        """Return the merge in memory."""
        return LiveWeights(self.recipe, self.workspace, self.placement, self.shared)

    def folder_merge(self) -> FolderWeights:
        """Return the merge that is made anew."""
        return FolderWeights(self.recipe, self.shared)

    def recipe_with(self, found: Mapping[str, Settings]) -> Recipe:
        """Return the recipe with the weights of the merge."""
        return self.recipe.with_weights(weights_of(self.recipe, found[MERGE]))

    def goal(self) -> dict[str, object]:
        """Return what is sought, as plain data."""
        return {"shared": self.shared, **super().goal()}


def search_weights(
    recipe: Recipe,
    score: Callable[[PreTrainedModel, PreTrainedTokenizerBase], Mapping[str, float]],
    options: Options = WEIGHT_OPTIONS,
    placement: Placement = AS_STORED,
    shared: bool = False,
    workspace: Path | None = None,
) -> SearchResult:
    """Search the weights of a whole merge by any evaluation.

    Candidates are compared by the geometric mean of the Task-Ratios: the scores of the merge over
    the best score of any fine-tuned model of the recipe on the same task. No task counts more
    because its scores are larger.

    Args:
        recipe: The recipe of the merge. Every fine-tuned model has a number as its weight, from
            which the search starts.
        score: Returns task -> score of a live model, given the model and its tokenizer; the same
            tasks every time. More is better, and some fine-tuned model must score above 0 on every
            task. It is called once for every fine-tuned model and once for every candidate, in
            order.
        options: How to search.
        placement: Where and how models are held.
        shared: Whether all models share one weight.
        workspace: A folder on a disk with room for a merged model; the system's temporary folder
            where None.

    Returns:
        The best weights found, fine-tuned model -> weight (`weight` -> the shared one), and their
        ratio before and after, in percent.

    Raises:
        RecipeError: The weights of the recipe's method cannot be tuned, or one is no number.
        TasksError: No fine-tuned model scores above 0 on a task.
        DppaError: The strategy is one for factors, or a model cannot be loaded.

    Example:
        >>> from pathlib import Path
        >>> from dppa_mergekit import Recipe, search_weights
        >>> def score(model, tokenizer):
        ...     tokens = tokenizer("The capital of France is Paris.", return_tensors="pt")
        ...     return {"likelihood": float((-model(**tokens, labels=tokens.input_ids).loss).exp())}
        >>> recipe = Recipe.read(Path("recipe.yml"))  # doctest: +SKIP
        >>> found = search_weights(recipe, score)  # doctest: +SKIP
        >>> print(found.factors, found.before, found.after)  # doctest: +SKIP
        {'./math': 0.7, './law': 0.5} 88.0 93.5
    """
    check_weighted(recipe, options, shared)
    room = Path(tempfile.gettempdir()) if workspace is None else workspace
    trials = MemoryTrials(
        LiveWeights(recipe, room, placement, shared),
        partial(score_best, recipe.fine_tuned()),
        CallableScorer(score),
        placement,
    )
    return CandidateSearch(
        MERGE,
        recipe.base,
        {},
        trials,
        options,
        make_candidates=weight_candidates(starting_weights(recipe, shared), is_normalized(recipe)),
    ).run()


def check_weighted(recipe: Recipe, options: Options, shared: bool, strategy: str = WEIGHTS) -> None:
    """Refuse a recipe whose weights cannot be searched with these options.

    Raises:
        RecipeError: The method is unknown here, a weight is no number, or a shared weight changes
            nothing.
        DppaError: The strategy is one for factors.
    """
    known = [*method_table.names(), *MERGEKIT_METHODS]
    if recipe.method not in known:
        raise RecipeError(
            f"{recipe.origin}: the weights of {recipe.method} cannot be tuned; allowed are "
            f"{', '.join(known)}."
        )
    if options.strategy != strategy:
        raise DppaError(
            f"Strategy {options.strategy} is for the factors of one model; weights, and factors of "
            f"a merge, are tuned in one way only."
        )
    recipe.weights(method_table.default_weight(recipe.method))
    if shared and method_table.is_by_inputs(recipe.method):
        raise RecipeError(
            f"{recipe.origin}: by inputs only the ratios of the weights count, so one weight for "
            f"all models changes nothing; tune one for each."
        )
    if shared and is_normalized(recipe):
        raise RecipeError(
            f"{recipe.origin}: {recipe.method} divides by the sum of the weights, so one weight "
            f"for all models changes nothing; tune one for each, or set normalize: false."
        )


def is_normalized(recipe: Recipe) -> bool:
    """Whether a merge divides by the sum of its weights everywhere, so that only ratios count.

    Raises:
        ParameterError: `normalize` is neither true nor false.
    """
    known = method_table.method_of(recipe.method)
    default = recipe.method in NORMALIZED
    if known is not None:
        default = any(
            parameter.name == "normalize" and parameter.default is True
            for parameter in known.combination.parameters
        )
    models = recipe.fine_tuned()
    given = recipe.parameters(models[0]).get("normalize") if models else None
    switch = normalize(default)
    values = [switch.check(value) for value in values_in(given)]
    return all(values) if values else default


def starting_weights(recipe: Recipe, shared: bool) -> list[float]:
    """Return the weights to start from; where they are shared, their mean."""
    weights = list(recipe.weights(method_table.default_weight(recipe.method)).values())
    return [sum(weights) / len(weights)] if shared else weights
