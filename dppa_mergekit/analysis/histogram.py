"""Quantiles of any number of deltas in fixed memory.

Deltas are counted by the upper 16 bits of their float32: sign, exponent and 7 bits of the mantissa.
A bin is 2^-7 of its values wide, so that its middle is off by 2^-8 of the value at most. Least and
largest delta are exact; squares are summed in float32 within a chunk, and exactly over chunks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy
from numpy.typing import NDArray

from dppa_mergekit.analysis.results import Offsets

BINS = 1 << 16
SIGN = 1 << 15

COARSE = 41
"""Bins of the histogram that is kept."""

Values = NDArray[numpy.float32]


def _middles() -> NDArray[numpy.float64]:
    """(BINS,) the value in the middle of each bin, ascending; zero is in the first of its sign."""
    upper = numpy.arange(BINS, dtype=numpy.uint32)
    with numpy.errstate(invalid="ignore"):  # Some are NaN; no delta is.
        middle = ((upper << 16) | SIGN).view(numpy.float32).astype(numpy.float64)
    middle[[0, SIGN]] = 0.0
    return middle


@dataclass
class Histogram:
    """What was counted.

    Attributes:
        counts: (BINS,) by the upper 16 bits.
        minimum: Of all values.
        maximum: Likewise.
        squares: Sums of squares, of parts.
        squares_of_base: Likewise, of the base's values at the same places.
    """

    counts: NDArray[numpy.int64] = field(default_factory=lambda: numpy.zeros(BINS, numpy.int64))
    minimum: float = math.inf
    maximum: float = -math.inf
    squares: list[float] = field(default_factory=list)
    squares_of_base: list[float] = field(default_factory=list)

    def add(self, delta: Values, base: Values) -> None:
        """Count the deltas of a chunk, which is not empty."""
        upper = delta.view(numpy.uint32) >> 16
        self.counts += numpy.bincount(upper, minlength=BINS)
        self.minimum = min(self.minimum, float(delta.min()))
        self.maximum = max(self.maximum, float(delta.max()))
        self.squares.append(float(numpy.dot(delta, delta)))
        self.squares_of_base.append(float(numpy.dot(base, base)))

    def merge(self, other: Histogram) -> None:
        """Count what another has counted, too."""
        self.counts += other.counts
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self.squares += other.squares
        self.squares_of_base += other.squares_of_base

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Values that so much of what was counted is not above; see the module on their error."""
        middles = _middles()
        order = numpy.argsort(middles, kind="stable")
        upto = numpy.cumsum(self.counts[order])
        ranks = numpy.ceil(numpy.asarray(shares) * upto[-1]).clip(1)
        found = middles[order][numpy.searchsorted(upto, ranks)]
        return [float(each) for each in found.clip(self.minimum, self.maximum)]

    def offsets(self, nonzero: int) -> Offsets:
        """The summary of what was counted; `nonzero` of it are not zero."""
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
        if reach == 0:
            return ()
        # Of bins that hold nothing, the middle may be NaN.
        held = numpy.flatnonzero(self.counts)
        middles, counts = _middles()[held], self.counts[held]
        edges = numpy.linspace(-reach, reach, COARSE + 1)
        found, _ = numpy.histogram(middles, edges, weights=counts)
        return tuple((found / number).tolist())
