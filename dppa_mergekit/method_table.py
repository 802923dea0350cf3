"""The merge methods of this package: five rows of one table."""

from dataclasses import dataclass
from typing import Literal

from dppa_mergekit import parameters as recipe
from dppa_mergekit.allocation.density import Level


@dataclass(frozen=True)
class Variant:
    """One merge method: allocation x sparsification x consensus.

    Attributes:
        name: As a recipe names it.
        pretty_name: As a model card does.
        levels: What the density fluctuates by; nothing for uniform allocation.
        selection: Which elements are kept.
        amplified: Whether partitions and dense tensors have factors.
        consensus: TIES sign consensus.
        significance: Default of that parameter.
    """

    name: str
    pretty_name: str
    levels: tuple[Level, ...]
    selection: Literal["magnitude", "random"] = "magnitude"
    amplified: bool = True
    consensus: bool = False
    significance: Literal["magnitude", "count"] = "magnitude"

    @property
    def parameters(self) -> tuple[recipe.Parameter, ...]:
        """The parameters that the method takes."""
        amplify = (*recipe.AMPLIFICATIONS, recipe.AMPLIFY_DENSE) if self.amplified else ()
        fluctuate = (
            recipe.MAX_FLUCTUATION,
            recipe.significance(self.significance),
            recipe.SIGNIFICANCE_MULTIPLE,
            recipe.BLOCK_SIGNIFICANCE_MULTIPLE,
        )
        return (
            recipe.WEIGHT,
            recipe.DENSITY,
            *amplify,
            *(fluctuate if self.levels else ()),
            recipe.LAMBDA,
            recipe.normalize(self.consensus),
            *((recipe.SEED,) if self.selection == "random" else ()),
        )


VARIANTS = (
    Variant("dppa", "DPPA", ("block", "linear")),
    Variant("dppa_ties", "DPPA with TIES consensus", ("block", "linear"), consensus=True),
    Variant("dp", "Dynamic Pruning", ("block", "linear"), amplified=False),
    Variant("owl", "OWL", ("block",), amplified=False, significance="count"),
    Variant("dare_dpa", "DARE with DPA", (), selection="random"),
)


def names() -> list[str]:
    """Of all methods."""
    return [variant.name for variant in VARIANTS]


def amplified() -> list[str]:
    """Of those that have partitions."""
    return [variant.name for variant in VARIANTS if variant.amplified]


def summing() -> list[str]:
    """Of those whose result is a weighted sum."""
    return [variant.name for variant in VARIANTS if not variant.consensus]


def rescaled() -> list[str]:
    """Of those whose deltas are divided by the density first, so that factors reduce."""
    return [variant.name for variant in VARIANTS if variant.selection == "random"]
