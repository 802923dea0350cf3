"""The allocations that methods use: uniform, OWL and DP, each with its recipe parameters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from dppa_mergekit.allocation.density import DynamicPruning, Level
from dppa_mergekit.allocation.statistics import ModelStatistics, Multiples
from dppa_mergekit.parameters import (
    BLOCK_SIGNIFICANCE_MULTIPLE,
    MAX_FLUCTUATION,
    SIGNIFICANCE_MULTIPLE,
    Parameter,
    significance,
)
from dppa_mergekit.tensor_names import Linear


class Allocation(Protocol):
    """A way to spread a density over linears, with its parameters resolved; hashable."""

    @property
    def multiples(self) -> Multiples | None:
        """The multiples at which statistics must have been taken; None if it needs no tails."""
        ...

    def allocate(self, statistics: ModelStatistics, density: float) -> dict[Linear, int]:
        """The kept count of every linear.

        Args:
            statistics: Statistics of one model's deltas at `multiples`.
            density: Share of all linears' elements to keep, from 0 to 1.
        """
        ...


@dataclass(frozen=True)
class FluctuationRule:
    """Densities that fluctuate with significance.

    Attributes:
        levels: What fluctuates: ("block", "linear") is DP, ("block",) is OWL.
        significance: Default of the parameter `significance`.
    """

    levels: tuple[Level, ...]
    significance: Literal["magnitude", "count"]

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The shared recipe parameters that it takes."""
        return (
            MAX_FLUCTUATION,
            significance(self.significance),
            SIGNIFICANCE_MULTIPLE,
            BLOCK_SIGNIFICANCE_MULTIPLE,
        )

    def resolve(self, shared: Mapping[str, object]) -> DynamicPruning:
        """The allocation under a tensor's shared parameters."""
        by_count = significance(self.significance).of(shared) == "count"
        return DynamicPruning(
            MAX_FLUCTUATION.of(shared),
            "count" if by_count else "magnitude",
            SIGNIFICANCE_MULTIPLE.of(shared),
            BLOCK_SIGNIFICANCE_MULTIPLE.optional(shared),
            self.levels,
        )


class UniformRule:
    """The same density for every linear."""

    parameters: tuple[Parameter, ...] = ()

    def resolve(self, shared: Mapping[str, object]) -> DynamicPruning:
        """The allocation under a tensor's shared parameters."""
        return DynamicPruning(max_fluctuation=0.0, levels=())


UNIFORM = UniformRule()
OWL = FluctuationRule(("block",), "count")
DP = FluctuationRule(("block", "linear"), "magnitude")
