"""What a pass over deltas finds of their magnitudes: sums, zeros, and tails above bounds.

The mean of a linear is known after a pass, and its tail begins at a multiple of it. So a pass
gathers the magnitudes above a guess, and the tail is read off them; where the guess was wrong, or
too much would have to be held, a second pass measures it. Both sum in float64, chunk by chunk, so
that a tail does not depend on the number of threads.
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
"""Elements from which the mean of a linear is guessed before its visit."""

MARGIN = 0.7
"""From what share of a guessed bound on to gather: more costs less than another visit."""

Magnitudes: TypeAlias = NDArray[numpy.float32] | NDArray[numpy.float64]
Tail: TypeAlias = tuple[float, int]
"""The sum and the number of the magnitudes above a bound."""


@dataclass(frozen=True)
class Gathered:
    """The largest magnitudes of one linear's delta.

    Attributes:
        floor: All magnitudes above it are held; none if it is infinite.
        chunks: Chunk by chunk, in flat order.
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
    """What a pass finds of one delta.

    Attributes:
        magnitude: The sum of its magnitudes.
        nonzero: How many are not zero.
        gathered: The largest.
    """

    magnitude: float
    nonzero: int
    gathered: Gathered


@dataclass(frozen=True)
class _ChunkSums:
    """As Sums, of one chunk."""

    magnitude: float
    nonzero: int
    above: Magnitudes


def floor_below(delta: Delta, multiple: float) -> float:
    """Above what magnitude to gather, so that all above a multiple of the mean are among it.

    Args:
        delta: Of a linear; its mean magnitude is guessed by a sample.
        multiple: Of the mean; infinite where nothing is wanted.

    Returns:
        Infinity where an eighth of the magnitudes or more would have to be held.
    """
    if delta.numel == 0 or multiple == math.inf:
        return math.inf
    sample = delta.sample(max(1, delta.numel // SAMPLE)).abs_().numpy()
    floor = multiple * float(sample.mean()) * MARGIN
    return floor if numpy.count_nonzero(sample > floor) * 8 < len(sample) else math.inf


def sums(deltas: Sequence[Delta], floors: Sequence[float]) -> list[Sums]:
    """Per delta of one base: the sum of magnitudes, the non-zero ones, and those above its floor.

    Args:
        deltas: Of the same linear, or dense tensor, of several models.
        floors: (deltas,) in any of their dtypes; infinite to gather none.
    """
    if not deltas:
        return []
    lowest = [
        _largest_at_most(floor, each.dtype) for each, floor in zip(deltas, floors, strict=True)
    ]

    compiled = [passes_over(delta) for delta in deltas]

    def work(places: Iterator[tuple[int, int]]) -> list[tuple[int, list[_ChunkSums]]]:
        readers, _ = delta_chunks(deltas)
        mask, room = Buffer(torch.bool, deltas[0].device), PassBuffers()
        found = []
        for start, stop in places:
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
            sum(each[i].magnitude for each in ordered),
            sum(each[i].nonzero for each in ordered),
            Gathered(floor, [each[i].above for each in ordered]),
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
    """Per bound, the sum and the number of the magnitudes above it."""
    passes = passes_over(delta)
    limits = [_largest_at_most(bound, delta.dtype) for bound in bounds]

    def work(places: Iterator[tuple[int, int]]) -> list[tuple[int, list[Tail]]]:
        (reader,), _ = delta_chunks([delta])
        found = []
        for start, stop in places:
            if passes is None:
                magnitudes: Magnitudes = reader.read(start, stop).abs_().numpy()
                of_chunk = [_tail(magnitudes, limit) for limit in limits]
            else:
                of_chunk = passes.sum_tails(start, stop, limits)
            found.append((start, of_chunk))
        return found

    ordered = in_order(share(work, delta.chunks(), delta.device))
    return [_total(each[i] for each in ordered) for i in range(len(bounds))]


def _tail(magnitudes: Magnitudes, limit: float) -> Tail:
    """The sum, in float64, and the number of the magnitudes of one chunk above a limit."""
    above = magnitudes[numpy.flatnonzero(magnitudes > limit)]
    return float(above.sum(dtype=numpy.float64)), len(above)


def _total(tails: Iterable[Tail]) -> Tail:
    mass, count = 0.0, 0
    for chunk_mass, chunk_count in tails:
        mass, count = mass + chunk_mass, count + chunk_count
    return mass, count


def _largest_at_most(bound: float, dtype: torch.dtype) -> float:
    """The largest value of the dtype not above the bound: rounding it up would lose elements."""
    if dtype == torch.float64:
        return bound
    rounded = numpy.float32(bound)
    if float(rounded) > bound:
        rounded = numpy.nextafter(rounded, numpy.float32(-numpy.inf))
    return float(rounded)
