"""The contract of a merge method: a row of the table, made of three exchangeable objects.

A new allocation, selection or combination is one object that fits its protocol below, in a file of
its own, and one row in `dppa_mergekit/method_table.py`. Each lists its recipe parameters. Its
`resolve` takes their values for one tensor, and returns the object that the merge calls:

    allocation    how many elements of every linear are kept     `Allocation.allocate`
    selection     which elements these are                       `Selection.keys`, `.divisor`
    combination   how the deltas of several models become one    `Combination.merge`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dppa_mergekit.parameters import (
    AMPLIFICATIONS,
    AMPLIFY_DENSE,
    DENSITY,
    Number,
    Parameter,
)

if TYPE_CHECKING:
    from dppa_mergekit.allocation.allocations import Allocation
    from dppa_mergekit.combination.combinations import Coefficient
    from dppa_mergekit.combination.contribution import Combination
    from dppa_mergekit.sparsification.selections import Selection


class AllocationRule(Protocol):
    """A row's allocation: its shared recipe parameters, and `resolve`."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The shared recipe parameters that it takes."""
        ...

    def resolve(self, shared: Mapping[str, object]) -> Allocation:
        """The allocation for a tensor with these values of the parameters."""
        ...


class SelectionRule(Protocol):
    """A row's selection: its shared recipe parameters, and `resolve`."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The shared recipe parameters that it takes."""
        ...

    @property
    def rescales(self) -> bool:
        """Whether it divides the delta by its density, so that useful factors are below 1."""
        ...

    def resolve(self, shared: Mapping[str, object]) -> Selection:
        """The selection for a tensor with these values of the parameters."""
        ...


class CombinationRule(Protocol):
    """A row's combination: its recipe parameters, and `resolve`."""

    @property
    def weight(self) -> Number:
        """The recipe parameter of a model's weight."""
        ...

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The other recipe parameters that it takes, shared or of each model."""
        ...

    @property
    def coefficient(self) -> Coefficient:
        """The numbers in which the merge has derivatives, so that AdaMerging can learn them."""
        ...

    def resolve(self, shared: Mapping[str, object]) -> Combination:
        """The combination for a tensor with these values of the parameters."""
        ...


@dataclass(frozen=True)
class Method:
    """A merge method: allocation x selection x combination.

    Attributes:
        name: Name in a recipe.
        pretty_name: Name on a model card.
        allocation: How many elements of every linear are kept.
        selection: Which elements are kept.
        combination: How the deltas become one.
        amplified: Whether partitions and dense tensors have factors.
    """

    name: str
    pretty_name: str
    allocation: AllocationRule
    selection: SelectionRule
    combination: CombinationRule
    amplified: bool = True

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """All recipe parameters of the method."""
        amplify = (*AMPLIFICATIONS, AMPLIFY_DENSE) if self.amplified else ()
        return (
            self.combination.weight,
            DENSITY,
            *amplify,
            *self.allocation.parameters,
            *self.combination.parameters,
            *self.selection.parameters,
        )
