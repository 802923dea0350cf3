"""Contributions of models to a linear, the protocol of a combination, and what it combined."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch

from dppa_mergekit.deltas.linear_shape import LinearShape
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.sparsification.pruning import Pruned


@dataclass(frozen=True)
class Contribution:
    """The pruned, amplified delta of one model for one linear or dense tensor.

    Attributes:
        pruned: The delta.
        weight: The weight of the model.
        model: The name of the model.
        moment: The second moments of the linear's inputs in this model; None if nobody observed
            them, and for dense tensors.
    """

    pruned: Pruned
    weight: float
    model: str = ""
    moment: SecondMoment | None = None


@dataclass(frozen=True)
class Place:
    """The place of a linear, or of a dense tensor, in the merged model.

    Attributes:
        name: Name of the tensor.
        part: Elements of the flat tensor; one expert of several if the tensor stacks experts.
        shape: Outputs and inputs of a linear; None for a dense tensor.
    """

    name: str
    part: slice
    shape: LinearShape | None = None


class Combination(Protocol):
    """A way to make one delta of several, with its parameters resolved."""

    @property
    def by_inputs(self) -> bool:
        """Whether it needs the shapes of linears, and the moments of their inputs."""
        ...

    def merge(
        self,
        place: Place,
        base: torch.Tensor,
        contributions: Sequence[Contribution],
        merged: torch.Tensor,
        limit: float,
    ) -> bool:
        """Write base plus the combined contributions.

        Args:
            place: The place of the result.
            base: (numel,) borrowed.
            contributions: At least one, in the order of the recipe, of numel elements each.
            merged: (numel,) written to; every element is cast once.
            limit: Largest magnitude that all dtypes of the result hold.

        Returns:
            Whether the magnitude of a sum exceeds the limit, or a sum is NaN.
        """
        ...


@dataclass(frozen=True)
class Derivatives:
    """The derivatives of a loss in the numbers of one model for one tensor.

    Attributes:
        weight: In the weight.
        factors: In the factor of each partition; none for a dense tensor.
    """

    weight: float
    factors: Sequence[float]


@runtime_checkable
class DifferentiableCombination(Combination, Protocol):
    """A combination whose result has derivatives in weights and factors."""

    def weight_gradients(
        self, contributions: Sequence[Contribution], of_merged: torch.Tensor
    ) -> list[float]:
        """The derivatives of a loss in the weights.

        Args:
            contributions: In the order of the recipe, of numel elements each.
            of_merged: (numel,) derivative of the loss in the merged elements; on any device.
        """
        ...

    def derivatives(
        self, contributions: Sequence[Contribution], of_merged: torch.Tensor
    ) -> list[Derivatives]:
        """The derivatives of a loss in the weights, and in the factors of all partitions.

        The arguments are those of `weight_gradients`.
        """
        ...


@runtime_checkable
class FactoredCombination(Combination, Protocol):
    """A combination that finds factors of deltas, and is linear in them."""

    def without_automatic(self) -> Combination:
        """Return the combination that finds no factors."""
        ...

    def automatic_factors(self, place: Place, contributions: Sequence[Contribution]) -> list[float]:
        """Return the factor that every delta of a linear gets where it has none; 1 where it does.

        Args:
            place: The place of the linear.
            contributions: At least one, of numel elements each.
        """
        ...

    def factor_gradients(
        self, place: Place, contributions: Sequence[Contribution], of_merged: torch.Tensor
    ) -> list[float]:
        """The derivatives of a loss in a factor of each model's delta, whatever its value.

        Args:
            place: The place of the result.
            contributions: In the order of the recipe, of numel elements each.
            of_merged: (numel,) derivative of the loss in the merged elements; on any device.
        """
        ...

    def partition_gradients(
        self, place: Place, contributions: Sequence[Contribution], of_merged: torch.Tensor
    ) -> list[list[float]]:
        """The derivatives of a loss in the factors of each model's partitions.

        The arguments are those of `factor_gradients`.
        """
        ...


@dataclass(frozen=True)
class Combined:
    """One linear, or one dense tensor, of a merge: its place and the contributions to it.

    Attributes:
        place: Its place in the merged model.
        combination: How the contributions were combined.
        contributions: Those of all models, in the order of the recipe.
        dtypes: The dtypes to which the result is cast, one after the other.
    """

    place: Place
    combination: Combination
    contributions: Sequence[Contribution]
    dtypes: Sequence[torch.dtype]


Listener: TypeAlias = Callable[[Combined], None]
"""Called once for each combined linear or dense tensor; its tensors are borrowed, read-only."""
