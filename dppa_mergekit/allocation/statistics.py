"""The statistics of a model's deltas: what density allocation needs to know, and nothing more."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from dppa_mergekit.tensor_names import Block, Linear


@dataclass(frozen=True)
class Multiples:
    """N of the linears, and N of the blocks (the same where None)."""

    linear: float = 5.0
    block: float | None = None

    def __post_init__(self) -> None:
        """Make equal multiples compare equal, however they were written."""
        if self.block is None:
            object.__setattr__(self, "block", self.linear)

    @property
    def of_block(self) -> float:
        """N of the blocks, resolved."""
        return self.linear if self.block is None else self.block


@dataclass(frozen=True)
class LinearStatistics:
    """What is known of the delta of one linear.

    Attributes:
        linear: Its tensor and expert.
        block: Its block; None for a tensor that came without its model.
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
        multiples: What the tails were measured at; None where none were.
        linears: One record a linear.
        zero: Whether the delta is zero in every tensor, dense ones included.
    """

    multiples: Multiples | None
    linears: tuple[LinearStatistics, ...]
    zero: bool

    @property
    def nonzero_share(self) -> float:
        """The share of the linears' deltas that are not zero, 1 where there is no linear."""
        numel = sum(each.numel for each in self.linears)
        return sum(each.nonzero for each in self.linears) / numel if numel else 1.0


Statistics = Mapping[Multiples | None, ModelStatistics]
"""Of one model: what the tails were measured at, or None for no tails -> its statistics."""
