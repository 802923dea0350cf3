"""Which elements of a linear are kept: the largest, or any, at random.

The table of methods imports this module, and checks import the table, so torch is imported only
once a linear is pruned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dppa_mergekit.parameters import SEED, Parameter

if TYPE_CHECKING:
    from dppa_mergekit.deltas.delta import Delta
    from dppa_mergekit.deltas.keys import Keys


class Selection(Protocol):
    """A way to choose kept elements, with its parameters resolved."""

    @property
    def is_by_magnitude(self) -> bool:
        """Whether elements whose delta is zero are kept only when all others are."""
        ...

    def keys(self, delta: Delta, name: Sequence[str]) -> Keys:
        """The keys of a linear's elements; those with the largest keys are kept.

        Args:
            delta: Delta of the linear.
            name: Model, tensor and expert.
        """
        ...

    def divisor(self, density: float) -> float:
        """The divisor of the delta before it is amplified.

        Args:
            density: Density of the linear's model, above 0.
        """
        ...


@dataclass(frozen=True)
class LargestMagnitudes:
    """Keep the elements with the largest |delta| (DP, DPPA, OWL)."""

    is_by_magnitude = True

    def keys(self, delta: Delta, name: Sequence[str]) -> Keys:
        """Order by |delta|."""
        from dppa_mergekit.deltas.keys import MagnitudeKeys

        return MagnitudeKeys(delta)

    def divisor(self, density: float) -> float:
        """Leave the delta as it is."""
        return 1.0


@dataclass(frozen=True)
class RandomElements:
    """Keep elements at random and divide the delta by its density (DARE, arXiv 2311.03099).

    Attributes:
        seed: Seed of the draw.
    """

    seed: int = 0
    is_by_magnitude = False

    def keys(self, delta: Delta, name: Sequence[str]) -> Keys:
        """Order by a hash of (seed, name, index)."""
        from dppa_mergekit.sparsification.random_keys import random_keys

        return random_keys(delta, self.seed, name)

    def divisor(self, density: float) -> float:
        """Rescale, so that the mean of the delta is preserved."""
        return density


class MagnitudeRule:
    """The row entry of `LargestMagnitudes`, which has no parameters."""

    parameters: tuple[Parameter, ...] = ()
    rescales = False

    def resolve(self, shared: Mapping[str, object]) -> Selection:
        """The selection under a tensor's shared parameters."""
        return LargestMagnitudes()


class RandomRule:
    """The row entry of `RandomElements`; it rescales the delta, so useful factors are below 1."""

    parameters: tuple[Parameter, ...] = (SEED,)
    rescales = True

    def resolve(self, shared: Mapping[str, object]) -> Selection:
        """The selection under a tensor's shared parameters."""
        return RandomElements(int(SEED.of(shared)))


MAGNITUDE = MagnitudeRule()
RANDOM = RandomRule()
