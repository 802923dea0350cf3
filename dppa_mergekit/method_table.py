"""The merge methods of this package, a row each; their names stand here and nowhere else.

Importing the table imports neither torch nor mergekit; `methods.py` registers it with mergekit.
"""

from dppa_mergekit.allocation import allocations
from dppa_mergekit.combination.combinations import BY_INPUTS, TIES, WEIGHTED_SUM, Coefficient
from dppa_mergekit.merging.method import Method
from dppa_mergekit.parameters import AMPLIFY
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.sparsification.selections import MAGNITUDE, RANDOM

DPPA = Method("dppa", "DPPA", allocations.DP, MAGNITUDE, WEIGHTED_SUM)
DPPA_TIES = Method("dppa_ties", "DPPA with TIES consensus", allocations.DP, MAGNITUDE, TIES)
DP = Method("dp", "Dynamic Pruning", allocations.DP, MAGNITUDE, WEIGHTED_SUM, amplified=False)
OWL = Method("owl", "OWL", allocations.OWL, MAGNITUDE, WEIGHTED_SUM, amplified=False)
DARE_DPA = Method("dare_dpa", "DARE with DPA", allocations.UNIFORM, RANDOM, WEIGHTED_SUM)
DPPA_REGMEAN = Method("dppa_regmean", "DPPA with RegMean", allocations.DP, MAGNITUDE, BY_INPUTS)
DARE_REGMEAN = Method("dare_regmean", "DARE with RegMean", allocations.UNIFORM, RANDOM, BY_INPUTS)

METHODS = (DPPA, DPPA_TIES, DP, OWL, DARE_DPA, DPPA_REGMEAN, DARE_REGMEAN)


def method_of(name: str) -> Method | None:
    """The method of a name; None if this package has none of that name."""
    return next((method for method in METHODS if method.name == name), None)


def names() -> list[str]:
    """The names of all methods."""
    return [method.name for method in METHODS]


def amplified() -> list[str]:
    """The names of the methods that amplify partitions."""
    return [method.name for method in METHODS if method.amplified]


def learnable() -> list[str]:
    """The names of the methods whose merge has derivatives in its weights or factors."""
    return [method.name for method in METHODS if method.combination.coefficient is not None]


def coefficient_of(name: str) -> Coefficient:
    """The numbers in which a method's merge has derivatives; None for none."""
    known = method_of(name)
    return None if known is None else known.combination.coefficient


def fluctuating() -> list[str]:
    """The names of the methods whose density differs from linear to linear or block to block."""
    return [method.name for method in METHODS if method.allocation is not allocations.UNIFORM]


def rescaled() -> list[str]:
    """The names of the methods that divide a delta by its density, so that factors reduce it."""
    return [method.name for method in METHODS if method.selection.rescales]


def is_by_inputs(name: str) -> bool:
    """Whether a method of this package combines deltas by their inputs."""
    known = method_of(name)
    return known is not None and known.combination is BY_INPUTS


def by_inputs(name: str) -> Method | None:
    """The method that combines the deltas of another method by their inputs; None for none."""
    known = method_of(name)
    if known is None:
        return None
    return next(
        (
            method
            for method in METHODS
            if method.combination is BY_INPUTS
            and (method.allocation, method.selection) == (known.allocation, known.selection)
        ),
        None,
    )


def default_weight(name: str) -> float | None:
    """The weight that a method gives a model without one; None if every model must have one."""
    known = method_of(name)
    default = None if known is None else known.combination.weight.default
    return float(default) if isinstance(default, (int, float)) else None


def without_automatic(recipe: Recipe) -> Recipe:
    """The recipe without factors that the merge finds itself where all are 1."""
    known = method_of(recipe.method)
    if known is None or AMPLIFY not in known.parameters:
        return recipe
    return recipe.with_shared({AMPLIFY.name: "none"})
