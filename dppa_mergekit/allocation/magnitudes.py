"""The magnitudes of deltas: their sums, zeros, and tails above bounds.

A linear's tail begins at a multiple of its mean, which is known only after a pass. So the pass
gathers the magnitudes above a guess, and the tail is read off them. Where the guess was wrong, or
too many magnitudes would have to be held, a second pass measures the tail. Both sum in float64,
chunk by chunk, so a tail does not depend on the number of threads.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy
import torch
from numpy.typing import NDArray

from dppa_mergekit.deltas.delta import Buffer, Delta, delta_chunks
from dppa_mergekit.deltas.kernel import PassBuffers, passes_over
from dppa_mergekit.deltas.threads import in_order, share

SAMPLE = 1 << 11
"""Number of elements from which the mean of a linear is guessed before its visit."""

MARGIN = 0.7
"""Share of a guessed bound from which magnitudes are gathered; a second visit would cost more."""

Magnitudes: TypeAlias = NDArray[numpy.float32] | NDArray[numpy.float64]
Tail: TypeAlias = tuple[float, int]
"""The sum and the number of the magnitudes above a bound."""


@dataclass(frozen=True)
class Gathered:
    """The largest magnitudes of one linear's delta.

    Attributes:
        floor: All magnitudes above this are held; none if it is infinite.
        chunks: The magnitudes, chunk by chunk, in flat order.
    """

    floor: float
    chunks: Sequence[Magnitudes]

    def tail(self, bound: float) -> Tail:
        """The sum and the number of the magnitudes above a bound that is not below the floor."""
        return _total(
            _tail(chunk, _largest_at_most(bound, torch.from_numpy(chunk).dtype))
            for chunk in self.chunks
        )


@dataclass(frozen=True)
class Sums:
    """The result of a pass over one delta.

    Attributes:
        magnitude: Sum of its magnitudes.
        nonzero: Number of non-zero elements.
        gathered: Its largest magnitudes.
    """

    magnitude: float
    nonzero: int
    gathered: Gathered


@dataclass(frozen=True)
class _ChunkSums:
    """The sums of one chunk, and its magnitudes above the floor."""

    magnitude: float
    nonzero: int
    above: Magnitudes


def floor_below(delta: Delta, multiple: float) -> float:
    """A bound below a multiple of the mean magnitude, from which magnitudes are gathered.

    Args:
        delta: Delta of a linear; its mean magnitude is guessed from a sample.
        multiple: Multiple of the mean; infinite if no tail is wanted.

    Returns:
        The bound; infinity if an eighth of the magnitudes or more would have to be held.
    """
    if delta.numel == 0 or multiple == math.inf:
        return math.inf
    sample = delta.sample(max(1, delta.numel // SAMPLE)).abs_().numpy()
    floor = multiple * float(sample.mean()) * MARGIN
    return floor if numpy.count_nonzero(sample > floor) * 8 < len(sample) else math.inf


def sums(deltas: Sequence[Delta], floors: Sequence[float]) -> list[Sums]:
    """Sum, count and gather the magnitudes of several deltas from one base.

    Args:
        deltas: Deltas of the same linear, or dense tensor, in several models.
        floors: (deltas,) bounds above which magnitudes are gathered; infinite to gather none.

    Returns:
        (deltas,) one result for each delta.
    """
    if not deltas:
        return []
    lowest = [
        _largest_at_most(floor, delta.dtype) for delta, floor in zip(deltas, floors, strict=True)
    ]

    compiled = [passes_over(delta) for delta in deltas]

    def work(spans: Iterator[tuple[int, int]]) -> list[tuple[int, list[_ChunkSums]]]:
        readers, _ = delta_chunks(deltas)
        mask, room = Buffer(torch.bool, deltas[0].device), PassBuffers()
        found = []
        for start, stop in spans:
            of_chunk = [
                _chunk_sums(reader.read(start, stop).abs_(), floor, mask)
                if passes is None
                else _ChunkSums(*passes.sum_magnitudes(start, stop, floor, room))
                for reader, passes, floor in zip(readers, compiled, lowest, strict=True)
            ]
            found.append((start, of_chunk))
        return found

    ordered = in_order(share(work, deltas[0].chunks(), deltas[0].device))
    return [
        Sums(
            sum(of_chunk[i].magnitude for of_chunk in ordered),
            sum(of_chunk[i].nonzero for of_chunk in ordered),
            Gathered(floor, [of_chunk[i].above for of_chunk in ordered]),
        )
        for i, floor in enumerate(floors)
    ]


def _chunk_sums(magnitudes: torch.Tensor, floor: float, mask: Buffer) -> _ChunkSums:
    values = magnitudes.numpy()
    chosen = mask.of(len(values)).numpy()
    numpy.not_equal(values, 0, out=chosen)
    nonzero = int(numpy.count_nonzero(chosen))
    above = values[:0].copy()
    if floor < math.inf:
        numpy.greater(values, floor, out=chosen)
        above = values[numpy.flatnonzero(chosen)]
    # NumPy sums in one thread, so in one order; torch would split the sum.
    return _ChunkSums(float(values.sum(dtype=numpy.float64)), nonzero, above)


def tails(delta: Delta, bounds: Sequence[float]) -> list[Tail]:
    """(bounds,) sum and number of the magnitudes above each bound."""
    passes = passes_over(delta)
    limits = [_largest_at_most(bound, delta.dtype) for bound in bounds]

    def work(spans: Iterator[tuple[int, int]]) -> list[tuple[int, list[Tail]]]:
        (reader,), _ = delta_chunks([delta])
        found = []
        for start, stop in spans:
            if passes is None:
                magnitudes: Magnitudes = reader.read(start, stop).abs_().numpy()
                of_chunk = [_tail(magnitudes, limit) for limit in limits]
            else:
                of_chunk = passes.sum_tails(start, stop, limits)
            found.append((start, of_chunk))
        return found

    ordered = in_order(share(work, delta.chunks(), delta.device))
    return [_total(of_chunk[i] for of_chunk in ordered) for i in range(len(bounds))]


def _tail(magnitudes: Magnitudes, limit: float) -> Tail:
    """Sum, in float64, and number of the magnitudes of one chunk above a limit."""
    above = magnitudes[numpy.flatnonzero(magnitudes > limit)]
    return float(above.sum(dtype=numpy.float64)), len(above)


def _total(tails: Iterable[Tail]) -> Tail:
    mass, count = 0.0, 0
    for chunk_mass, chunk_count in tails:
        mass, count = mass + chunk_mass, count + chunk_count
    return mass, count


def _largest_at_most(bound: float, dtype: torch.dtype) -> float:
    """The largest value of the dtype at or below the bound; rounding up would lose elements."""
    if dtype == torch.float64:
        return bound
    rounded = numpy.float32(bound)
    if float(rounded) > bound:
        rounded = numpy.nextafter(rounded, numpy.float32(-numpy.inf))
    return float(rounded)
