"""Quantiles of any number of deltas in fixed memory.

Deltas are counted by the upper 16 bits of their float32: sign, exponent and 7 bits of the mantissa.
A bin is 2^-7 of its values wide, so its middle differs from them by at most 2^-8 of the value. The
smallest and the largest delta are exact. Squares are summed in float32 within a chunk, and exactly
over chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy
from numpy.typing import NDArray

from dppa_mergekit.analysis.results import Offsets

BINS = 1 << 16

NEGATIVE_ZERO = 1 << 15
"""The bin of -0.0 and of the smallest negative values: the upper 16 bits of -0.0."""

HALF_BIN = 1 << 15
"""Half the width of a bin, in the lower 16 bits of its values."""

COARSE_BINS = 41
"""Bins of the histogram in the results."""

Values = NDArray[numpy.float32]


def _middles() -> NDArray[numpy.float64]:
    """Return (BINS,) the middle of each bin; the first bin of each sign stands for zero."""
    upper = numpy.arange(BINS, dtype=numpy.uint32)
    with numpy.errstate(invalid="ignore"):  # some bins are of NaN; no delta is in them
        middle = ((upper << 16) | HALF_BIN).view(numpy.float32).astype(numpy.float64)
    middle[[0, NEGATIVE_ZERO]] = 0.0
    return middle


@dataclass
class Histogram:
    """The counts of deltas, with their extremes and sums of squares.

    Attributes:
        counts: (BINS,) the number of deltas in each bin.
        minimum: The smallest delta; infinity before the first.
        maximum: The largest delta; minus infinity before the first.
        squares: The sum of squared deltas of each chunk.
        squares_of_base: The sum of the base's squared weights of each chunk.
    """

    counts: NDArray[numpy.int64] = field(default_factory=lambda: numpy.zeros(BINS, numpy.int64))
    minimum: float = math.inf
    maximum: float = -math.inf
    squares: list[float] = field(default_factory=list)
    squares_of_base: list[float] = field(default_factory=list)

    def add(self, delta: Values, base: Values) -> None:
        """Count the deltas of a chunk.

        Args:
            delta: (elements,) finite deltas, at least one.
            base: (elements,) the base's weights.
        """
        upper = delta.view(numpy.uint32) >> 16
        self.counts += numpy.bincount(upper, minlength=BINS)
        self.minimum = min(self.minimum, float(delta.min()))
        self.maximum = max(self.maximum, float(delta.max()))
        self.squares.append(float(numpy.dot(delta, delta)))
        self.squares_of_base.append(float(numpy.dot(base, base)))

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram."""
        self.counts += other.counts
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self.squares += other.squares
        self.squares_of_base += other.squares_of_base

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Return the quantiles of the counted deltas, to a relative error of 2^-8.

        Args:
            shares: From 0 to 1; the quantile of a share is the smallest value that at least this
                share of the deltas does not exceed.
        """
        middles = _middles()
        order = numpy.argsort(middles, kind="stable")
        upto = numpy.cumsum(self.counts[order])
        ranks = numpy.ceil(numpy.asarray(shares) * upto[-1]).clip(1)
        found = middles[order][numpy.searchsorted(upto, ranks)]
        return [float(value) for value in found.clip(self.minimum, self.maximum)]

    def offsets(self, nonzero: int) -> Offsets:
        """Return the distribution of the counted deltas.

        Args:
            nonzero: The number of deltas that are not zero.
        """
        number = int(self.counts.sum())
        if number == 0:
            return Offsets(0.0, (0.0,) * 9, 0.0, 0.0, 0.0, 0.0, (), 0.0)
        *deciles, low, high = self.quantiles([*(tenth / 10 for tenth in range(1, 10)), 1e-3, 0.999])
        reach = max(-low, high, 0.0)
        deviation = math.sqrt(math.fsum(self.squares) / number)
        of_base = math.sqrt(math.fsum(self.squares_of_base) / number)
        return Offsets(
            self.minimum,
            tuple(deciles),
            self.maximum,
            1 - nonzero / number,
            deviation,
            deviation / of_base if of_base else math.inf,
            self._coarse(reach, number),
            reach,
        )

    def _coarse(self, reach: float, number: int) -> tuple[float, ...]:
        """Return (COARSE_BINS,) the share of deltas in each bin from -reach to reach."""
        if reach == 0:
            return ()
        # The middle of an empty bin may be NaN.
        held = numpy.flatnonzero(self.counts)
        middles, counts = _middles()[held], self.counts[held]
        edges = numpy.linspace(-reach, reach, COARSE_BINS + 1)
        found, _ = numpy.histogram(middles, edges, weights=counts)
        return tuple((found / number).tolist())
