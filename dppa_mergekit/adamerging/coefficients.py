"""The coefficients that AdaMerging learns: numbers of the models of a live merge, scope by scope.

`learnable` says which numbers of a merge these are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import torch

from dppa_mergekit.parameters import WEIGHT
from dppa_mergekit.recipes.by_scope import Scope, Weight
from dppa_mergekit.recipes.references import identity

if TYPE_CHECKING:
    from dppa_mergekit.live.merged_tensor import MergedTensor
    from dppa_mergekit.live.weighted_merge import ScopeOf, WeightedMerge
    from dppa_mergekit.recipes.recipe import Recipe

Table: TypeAlias = Sequence[Sequence[float]]
"""(rows, scopes of the row) numbers."""

PARTITION = "partition"
"""The granularity of numbers for every linear and partition."""

SCOPES: Mapping[str, ScopeOf] = {
    "model": lambda tensor: None,
    "block": lambda tensor: tensor.block,
    "linear": lambda tensor: tensor.name if tensor.is_pruned else None,
    PARTITION: lambda tensor: tensor.name if tensor.is_pruned else None,
}
"""Granularity -> the scope of a tensor. Dense tensors of a model share a number where linears have
their own."""

FACTOR = "factor"
"""The name of a factor that multiplies those of all partitions."""


@dataclass(frozen=True)
class Row:
    """The coefficients of one model that are one parameter.

    Attributes:
        model: The fine-tuned model, as the recipe spells it.
        name: The parameter's name in the recipe, or FACTOR.
        start: Scope, in order -> where the coefficient starts.
    """

    model: str
    name: str
    start: Mapping[Scope, float]

    @property
    def largest(self) -> float:
        """The largest value of a coefficient; the smallest is 0."""
        return 1.0 if self.name == WEIGHT.name else 10.0


Numbers: TypeAlias = Mapping[str, Mapping[str, Weight]]
"""Fine-tuned model, as the recipe spells it -> name of a row -> its coefficients."""


class Coefficients(ABC):
    """The coefficients of a live merge.

    Attributes:
        merge: The live merge.
        scope_of: Returns the scope of a tensor.
    """

    pruned_only: bool
    """Whether dense tensors have none."""

    def __init__(self, merge: WeightedMerge, granularity: str) -> None:
        """Find what can be learned.

        Args:
            merge: The live merge; it is not written to.
            granularity: A key of SCOPES.
        """
        self.merge, self.scope_of = merge, SCOPES[granularity]

    @cached_property
    def rows(self) -> Sequence[Row]:
        """The coefficients, a row for each parameter of each model, those of a model together."""
        return [
            row
            for model in self.merge.recipe.fine_tuned()
            for row in self._all_rows
            if row.model == model and row.start
        ]

    @cached_property
    def _all_rows(self) -> Sequence[Row]:
        return list(self._find_rows())

    @abstractmethod
    def _find_rows(self) -> Iterator[Row]:
        """Yield the rows of all models, in any order."""

    @abstractmethod
    def _with_numbers(
        self, tensor: MergedTensor, numbers: Mapping[object, Mapping[str, Weight]]
    ) -> MergedTensor:
        """Return a tensor with coefficients.

        Args:
            tensor: A tensor of the merge.
            numbers: Identity of a model -> name of a row -> its coefficients.
        """

    @abstractmethod
    def _derivatives(
        self, tensor: MergedTensor, of_merged: torch.Tensor
    ) -> Iterable[Mapping[str, float]]:
        """Return, of each model of a tensor, name of a row -> derivative of a loss.

        Args:
            tensor: A tensor of the merge, with coefficients.
            of_merged: (numel,) derivative of the loss in its merged elements.
        """

    @abstractmethod
    def recipe(self, table: Table) -> Recipe:
        """Return the recipe of the merge with coefficients."""

    @property
    def start(self) -> Table:
        """The coefficients of the recipe, or those that the merge finds."""
        return [list(row.start.values()) for row in self.rows]

    def numbers(self, table: Table) -> dict[str, dict[str, Weight]]:
        """Return coefficients by model and name; one number where a row has one scope."""
        found: dict[str, dict[str, Weight]] = {}
        for row, values in zip(self.rows, table, strict=True):
            by_scope = dict(zip(row.start, values, strict=True))
            weight: Weight = by_scope if len(by_scope) > 1 else next(iter(values))
            found.setdefault(row.model, {})[row.name] = weight
        return found

    def set(self, table: Table) -> None:
        """Write the merge with coefficients."""
        numbers = self._by_identity(table)
        self.merge.write(lambda tensor: self._with_numbers(tensor, numbers))

    @contextmanager
    def gradients(self, table: Table) -> Iterator[torch.Tensor]:
        """Collect the gradient of the coefficients from backward passes through the live model.

        Args:
            table: The coefficients as they were set.

        Yields:
            (coefficients,) float64 zeros, row after row, to which every backward pass in the
            context adds the derivatives of its loss.
        """
        numbers = self._by_identity(table)
        gradients = torch.zeros(sum(map(len, table)), dtype=torch.float64)

        def take(tensor: MergedTensor, of_merged: torch.Tensor) -> None:
            of_models = self._derivatives(self._with_numbers(tensor, numbers), of_merged)
            scope = self.scope_of(tensor)
            for model, of_model in zip(tensor.models, of_models, strict=True):
                for name, derivative in of_model.items():
                    gradients[self._positions[model, name, scope]] += derivative

        with self.merge.passing_gradients(take, self.pruned_only):
            yield gradients

    @cached_property
    def _positions(self) -> Mapping[tuple[object, str, Scope], int]:
        """Identity of the model, name of the row and scope -> the number of a coefficient."""
        keys = [(identity(row.model), row.name, scope) for row in self.rows for scope in row.start]
        return {key: number for number, key in enumerate(keys)}

    def _by_identity(self, table: Table) -> dict[object, Mapping[str, Weight]]:
        numbers = self.numbers(table)
        return {identity(model): numbers.get(model, {}) for model in self.merge.recipe.fine_tuned()}


def split(values: Iterable[float], table: Table) -> list[list[float]]:
    """Return numbers that stand row after row as a table of the shape of another."""
    remaining = iter(values)
    return [list(islice(remaining, len(row))) for row in table]
