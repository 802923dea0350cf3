"""Density allocation, equations (1) to (5) of the paper: from statistics to kept counts.

A pure function of the statistics of a model's deltas: no tensors, no files. In the equations,
lambda is `max_fluctuation` and N is `significance_multiple`:

    block i:       f_i  = lambda * D_i  / max|D|,  D_i  = s_i  - mean over the blocks of its stack
    linear (i,j):  f_ij = lambda * D_ij / max|D|,  D_ij = s_ij - mean over all linears
    kept density:  d_ij = clip(d + f_i + f_ij + c, 0, 1)

Means are weighted by element count, so the fluctuations leave the budget as it is; the constant c
restores it where clipping changes it. The authors' code has no c, and an unweighted mean over the
blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy
from numpy.typing import NDArray

from dppa_mergekit.allocation.statistics import LinearStatistics, ModelStatistics, Multiples
from dppa_mergekit.errors import ParameterError
from dppa_mergekit.parameters import (
    BLOCK_SIGNIFICANCE_MULTIPLE,
    DENSITY,
    MAX_FLUCTUATION,
    SIGNIFICANCE_MULTIPLE,
    check_number,
    significance,
)
from dppa_mergekit.tensor_names import Block, Linear

Floats = NDArray[numpy.float64]
Level = Literal["block", "linear"]


@dataclass(frozen=True)
class DynamicPruning:
    """DP and its baselines: OWL fluctuates by blocks only, magnitude pruning not at all.

    Attributes:
        max_fluctuation: Largest change of the density by the block, and by the linear; 0 is none.
        significance: "magnitude" sums the magnitudes above the multiple (paper), "count" counts
            them (OWL, authors' code); both divide by the number of elements.
        significance_multiple: N of the linears.
        block_significance_multiple: N of the blocks; that of the linears where None.
        levels: The levels that fluctuate: ("block", "linear") is DP, ("block",) is OWL.

    Raises:
        ParameterError: A value is not allowed.

    Example:
        >>> import torch
        >>> from dppa_mergekit import DynamicPruning, Linear, delta_statistics
        >>> base = {f"layers.{i}.up.weight": torch.zeros(40, 25) for i in range(2)}
        >>> torch.manual_seed(0) and None
        >>> fine_tuned = {name: torch.randn(40, 25) ** 3 for name in base}
        >>> counts = DynamicPruning().allocate(delta_statistics(base, fine_tuned), 0.2)
        >>> sum(counts.values())
        400
    """

    max_fluctuation: float = 0.08
    significance: Literal["magnitude", "count"] = "magnitude"
    significance_multiple: float = 5.0
    block_significance_multiple: float | None = None
    levels: tuple[Level, ...] = ("block", "linear")

    def __post_init__(self) -> None:
        """Check the values."""
        check_number(MAX_FLUCTUATION, self.max_fluctuation)
        significance("magnitude").check(self.significance)
        check_number(SIGNIFICANCE_MULTIPLE, self.significance_multiple)
        BLOCK_SIGNIFICANCE_MULTIPLE.check(self.block_significance_multiple)
        unknown = set(self.levels) - {"block", "linear"}
        if unknown:
            raise ParameterError(f"levels are {self.levels!r}; allowed are block and linear.")

    @property
    def multiples(self) -> Multiples | None:
        """The multiples at which the statistics must have been taken; None if none are needed."""
        if self.max_fluctuation == 0 or not self.levels:
            return None
        return Multiples(self.significance_multiple, self.block_significance_multiple)

    def allocate(self, statistics: ModelStatistics, density: float) -> dict[Linear, int]:
        """The kept count of every linear, k_ij = round(n_ij d_ij), halves to even.

        Args:
            statistics: Statistics of one model's deltas, taken at this object's multiples.
            density: Share of all linears' elements to keep, from 0 to 1.

        Raises:
            ParameterError: The density is out of range, or the statistics are at other multiples.
        """
        density = check_number(DENSITY, density)
        numel = numpy.array([record.numel for record in statistics.linears], dtype=numpy.float64)
        if density in (0, 1) or self.multiples is None:
            kept = numpy.full_like(numel, density)
        else:
            kept = shift_to_budget(density + self._fluctuation(statistics, numel), numel, density)
        counts = numpy.rint(numel * kept).astype(numpy.int64)
        return {
            record.linear: int(count)
            for record, count in zip(statistics.linears, counts, strict=True)
        }

    def _fluctuation(self, statistics: ModelStatistics, numel: Floats) -> Floats:
        """f_i + f_ij of every linear."""
        if statistics.multiples != self.multiples:
            raise ParameterError(
                f"The statistics are at {statistics.multiples}; needed are {self.multiples}."
            )
        total = numpy.zeros_like(numel)
        if "linear" in self.levels:
            above = self._tails(statistics, of_block=False)
            total += self.max_fluctuation * centred(above / numel, numel)
        if "block" in self.levels:
            above = self._tails(statistics, of_block=True)
            blocks = [record.block for record in statistics.linears]
            total += self.max_fluctuation * _block_fluctuation(above, numel, blocks)
        return total

    def significance_of(self, linears: Sequence[LinearStatistics], of_block: bool) -> float:
        """The significance s of some linears taken as one set.

        Args:
            linears: Statistics of a linear, or of all linears of a block.
            of_block: Use the bound of the block, not of each linear.
        """
        above = sum(record.tail(self.significance, of_block) for record in linears)
        return above / sum(record.numel for record in linears)

    def _tails(self, statistics: ModelStatistics, of_block: bool) -> Floats:
        """(linears,) sum or number of the significant magnitudes of every linear."""
        tails = [record.tail(self.significance, of_block) for record in statistics.linears]
        return numpy.array(tails, dtype=numpy.float64)


def _block_fluctuation(above: Floats, numel: Floats, blocks: list[Block | None]) -> Floats:
    """(linears,) f_i / lambda of the block of every linear, each stack by itself."""
    result = numpy.zeros_like(numel)
    names = sorted({block for block in blocks if block is not None})
    member = numpy.array([names.index(block) if block else -1 for block in blocks])
    sizes = numpy.array([numel[member == i].sum() for i in range(len(names))])
    masses = numpy.array([above[member == i].sum() for i in range(len(names))])
    for stack in sorted({block.stack for block in names}):
        inside = numpy.array([i for i, block in enumerate(names) if block.stack == stack])
        fluctuation = centred(masses[inside] / sizes[inside], sizes[inside])
        for i, value in zip(inside, fluctuation, strict=True):
            result[member == i] = value
    return result


def centred(significance: Floats, numel: Floats) -> Floats:
    """D / max|D| of equations (1) to (4): the distance from the weighted mean, scaled to [-1, 1].

    Args:
        significance: (items,) significance of the blocks of a stack, or of all linears.
        numel: (items,) their element counts.

    Returns:
        (items,) zeros where all significances are equal.
    """
    if significance.size == 0 or numpy.ptp(significance) == 0:
        return numpy.zeros_like(significance)
    distance = significance - (significance * numel).sum() / numel.sum()
    return numpy.asarray(distance / numpy.abs(distance).max(), dtype=numpy.float64)


def shift_to_budget(wanted: Floats, numel: Floats, density: float) -> Floats:
    """clip(wanted + c, 0, 1) with the c that makes the weighted mean `density`.

    Args:
        wanted: (linears,) densities before clipping.
        numel: (linears,) element counts.
        density: The mean to keep, strictly between 0 and 1.
    """
    if wanted.size == 0 or (wanted.min() >= 0 and wanted.max() <= 1):
        return wanted
    budget = density * numel.sum()
    # The kept total is piecewise linear in c and never falls; its corners are where one linear
    # starts or stops being clipped.
    corners = numpy.unique(numpy.concatenate([-wanted, 1 - wanted]))

    def total(corner: int) -> float:
        return float((numel * numpy.clip(wanted + corners[corner], 0, 1)).sum())

    left, right = 0, len(corners) - 1
    while right - left > 1:
        middle = (left + right) // 2
        left, right = (middle, right) if total(middle) < budget else (left, middle)
    rise = total(right) - total(left)
    share = (budget - total(left)) / rise if rise > 0 else 0.0
    constant = corners[left] + share * (corners[right] - corners[left])
    return numpy.asarray(numpy.clip(wanted + constant, 0, 1), dtype=numpy.float64)
