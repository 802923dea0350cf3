"""The entrants of a contest of methods: one recipe for each method and density."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dppa_mergekit import method_table
from dppa_mergekit.adamerging.objectives import START
from dppa_mergekit.checks.mergekit_schema import EPSILON, METHODS
from dppa_mergekit.checks.recipe_text import check_epsilon
from dppa_mergekit.errors import RecipeError
from dppa_mergekit.parameters import DENSITY, WEIGHT
from dppa_mergekit.recipes.inputs import inputs_of, numbers_in
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.recipes.references import identity
from dppa_mergekit.scoring.ratios import Estimate
from dppa_mergekit.search.results import Standing
from dppa_mergekit.search.weight_search import MERGEKIT_METHODS, is_normalized

ALL = "all"
"""Stands for all methods whose weights can be tuned."""

DENSITIES = (0.1, 0.2)
"""The densities that are tried where a recipe names none: those of the paper's tables."""

NO_PRUNING = ("task_arithmetic",)
"""The methods that take a density, by mergekit's list of parameters, and prune nothing."""

NORMALIZE = "normalize"
"""The parameter of mergekit's methods that divides a sum by that of the weights."""


@dataclass(frozen=True)
class Entrant:
    """A method, and the density that it prunes to.

    Attributes:
        method: The method.
        density: The density of every delta; None where the recipe's own counts, or none does.
        recipe: The recipe with this method and density.
    """

    method: str
    density: float | None
    recipe: Recipe

    @property
    def label(self) -> str:
        """The name of the entrant."""
        return self.method if self.density is None else f"{self.method}, density {self.density:g}"


@dataclass(frozen=True)
class Placed:
    """An entrant of a contest, and how it ended.

    Attributes:
        entrant: The entrant.
        standing: How its best candidate stands: on all items, or, of an entrant that was given up,
            on the choosing ones.
        behind: How far it was behind the leader when it was given up; None if it was not.
    """

    entrant: Entrant
    standing: Standing
    behind: Estimate | None = None

    @property
    def estimate(self) -> Estimate:
        """The Domain-Ratio of the merge, in percent, with its standard error."""
        return self.standing.objective.estimate(self.standing.scores)

    def to_record(self) -> dict[str, object]:
        """Return plain data for a run record."""
        return {
            "method": self.entrant.method,
            "density": self.entrant.density,
            "settings": dict(self.standing.settings),
            "value": self.estimate.value,
            "error": self.estimate.error,
            "items": self.standing.items,
            "evaluations": self.standing.evaluations,
            "seconds": self.standing.seconds,
            "given_up": self.behind is not None,
            "lost": self.standing.lost,
        }


def parse_methods(text: str) -> list[str]:
    """Return the methods of a list that is separated by commas; `all` stands for all of them.

    `dp` is not among all: it is `dppa` with factors of 1.

    Raises:
        RecipeError: The weights of a method cannot be tuned, or there are fewer than two.
    """
    known = [*MERGEKIT_METHODS, *method_table.names()]
    if text.strip() == ALL:
        return [method for method in known if method != method_table.DP.name]
    methods = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if ALL in methods:
        raise RecipeError(f"--methods is {text!r}; {ALL} stands alone.")
    for method in methods:
        if method not in known:
            raise RecipeError(
                f"--methods names {method}, whose weights cannot be tuned; allowed are "
                f"{', '.join(known)}, or {ALL}."
            )
    if len(methods) < 2:
        raise RecipeError(f"--methods is {text!r}; a contest needs at least two methods, or {ALL}.")
    return methods


def entrants_of(recipe: Recipe, methods: Sequence[str]) -> list[Entrant]:
    """Return the entrants of a contest between methods on the models of a recipe.

    Raises:
        RecipeError: The recipe names no base, or a density that DELLA's epsilon does not fit.
    """
    if recipe.content.get("base_model") is None:
        raise RecipeError(
            f"{recipe.origin} has no base_model, which the methods of a contest need."
        )
    return [entrant for method in methods for entrant in _of_method(recipe, method)]


def _of_method(recipe: Recipe, method: str) -> Iterator[Entrant]:
    """Yield the recipe with a method, once for each density where the recipe names none.

    Where it names one for some models, the others have this package's default, by every method.
    """
    prunes = DENSITY.name in METHODS[method].per_model and method not in NO_PRUNING
    named = any(DENSITY.name in given for _, given in inputs_of(recipe.content))
    if named and prunes:
        recipe = recipe.with_default(DENSITY.name, float(str(DENSITY.default)))
    for density in DENSITIES if prunes and not named else (None,):
        changed = _with_method(recipe, method)
        for model in changed.fine_tuned():
            if density is not None:
                changed = changed.with_parameters(model, {DENSITY.name: density})
            if EPSILON in METHODS[method].per_model:
                changed = _with_epsilon(changed, model)
        for finding in check_epsilon(changed.content):
            raise RecipeError(f"{recipe.origin}: {finding.subject}: {finding.sentence}")
        yield Entrant(method, density, changed)


def _with_epsilon(recipe: Recipe, model: str) -> Recipe:
    """Return a recipe of DELLA with half of the largest epsilon that the model's densities allow.

    An epsilon of the recipe's own stays.
    """
    given = [
        parameters
        for entry, parameters in inputs_of(recipe.content)
        if identity(entry["model"]) == identity(model)
    ]
    bounds = [
        min(density, 1 - density)
        for parameters in given
        for density in numbers_in(parameters.get(DENSITY.name))
        if 0 < density < 1
    ]
    if not bounds or any(EPSILON in parameters for parameters in given):
        return recipe
    return recipe.with_parameters(model, {EPSILON: min(bounds) / 2})


def _with_method(recipe: Recipe, method: str) -> Recipe:
    """Return a recipe with another method, and with those of its parameters that the method has.

    A sign consensus that divides by the sum of the weights by default, so that a common weight
    changes nothing, does not do so here, unless the recipe says so.
    """
    known = set(METHODS[method].parameters)
    if method in NO_PRUNING:
        known.discard(DENSITY.name)
    changed = recipe.with_method(method, known)
    if method_table.default_weight(method) is None:
        changed = changed.with_default(WEIGHT.name, START)
    given = any(NORMALIZE in recipe.parameters(model) for model in recipe.fine_tuned())
    if not method_table.is_by_inputs(method) and is_normalized(changed) and not given:
        changed = changed.with_shared({NORMALIZE: False})
    return changed
