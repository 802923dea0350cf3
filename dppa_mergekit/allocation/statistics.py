"""The statistics of a model's deltas: all that density allocation needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dppa_mergekit.tensor_names import Block, Linear


@dataclass(frozen=True)
class Multiples:
    """The multiples of the mean magnitude above which a delta is significant (paper 3.3.1).

    Attributes:
        linear: N of the linears.
        block: N of the blocks; that of the linears where None.

    Example:
        >>> from dppa_mergekit import DynamicPruning, Multiples
        >>> DynamicPruning(significance_multiple=5, block_significance_multiple=3).multiples
        Multiples(linear=5, block=3)
    """

    linear: float = 5.0
    block: float | None = None

    def __post_init__(self) -> None:
        """Fill in the block's N, so that equal multiples compare equal."""
        if self.block is None:
            object.__setattr__(self, "block", self.linear)

    @property
    def of_block(self) -> float:
        """N of the blocks, filled in."""
        return self.linear if self.block is None else self.block


@dataclass(frozen=True)
class LinearStatistics:
    """The statistics of one linear's delta.

    Attributes:
        linear: Tensor and expert.
        block: The block that it is in; None for a tensor that came without its model.
        numel: Number of elements, zeros included.
        nonzero: Number of non-zero deltas.
        magnitude: Sum of |delta|.
        mass: Sum of |delta| above N times its own mean magnitude.
        count: Number of such elements.
        block_mass: Sum of |delta| above the block's N times the block's mean magnitude.
        block_count: Number of such elements.
    """

    linear: Linear
    block: Block | None
    numel: int
    nonzero: int
    magnitude: float
    mass: float = 0.0
    count: int = 0
    block_mass: float = 0.0
    block_count: int = 0

    def tail(self, significance: Literal["magnitude", "count"], of_block: bool) -> float:
        """Sum or number of the magnitudes above the linear's own bound, or its block's."""
        if significance == "count":
            return self.block_count if of_block else self.count
        return self.block_mass if of_block else self.mass


@dataclass(frozen=True)
class ModelStatistics:
    """The statistics of all linears of one model, in natural order of their names.

    Attributes:
        multiples: The multiples at which tails were measured; None if none were.
        linears: A record for each linear.
        zero: Whether the delta is zero in every tensor, dense ones included.
    """

    multiples: Multiples | None
    linears: tuple[LinearStatistics, ...]
    zero: bool

    @property
    def nonzero_share(self) -> float:
        """The share of the linears' deltas that are not zero, 1 where there is no linear."""
        numel = sum(record.numel for record in self.linears)
        return sum(record.nonzero for record in self.linears) / numel if numel else 1.0


Statistics = Mapping[Multiples | None, ModelStatistics]
"""Multiples of the tails, or None for no tails -> statistics of one model."""
