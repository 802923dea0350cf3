"""The exact thresholds of a linear's kept sets, for several nested kept counts at once.

The elements with the largest keys are kept, and equal keys by the tie rule (`deltas/tie_order.py`).

A sample of the keys brackets the threshold of each count. One pass then counts the keys above each
bracket and gathers the keys within it, and the thresholds are found exactly among those few. If a
bracket misses its threshold, a larger sample draws it again, at last from all keys. The linears of
several models share each pass, and so the reading of the base.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import numpy
import torch
from numpy.typing import NDArray

from dppa_mergekit.deltas.delta import Buffer, Delta, buffers, delta_chunks
from dppa_mergekit.deltas.kernel import DeltaPasses, PassBuffers, passes_over
from dppa_mergekit.deltas.keys import Cut, Keys, MagnitudeKeys
from dppa_mergekit.deltas.masks import count_true, greater, true_indices
from dppa_mergekit.deltas.threads import in_order, share
from dppa_mergekit.deltas.tie_order import murmur_finaliser

SMALL = 1 << 14
"""Up to this number of keys, all of them are the sample."""

MARGIN = 4
"""Half width of a bracket in standard deviations of a rank; a bracket that misses costs little."""

SAMPLE = 32
"""Every SAMPLE-th of the gathered keys is sampled to guess a threshold."""

Integers: TypeAlias = NDArray[numpy.int32] | NDArray[numpy.int64] | NDArray[numpy.uint32]


@dataclass(frozen=True)
class Request:
    """The kept counts wanted of one linear, each from 0 to the number of its elements."""

    delta: Delta
    keys: Keys
    counts: Sequence[int]


def select(requests: Sequence[Request]) -> list[tuple[Cut, ...]]:
    """Find the kept sets of every request, one for each count; smaller sets lie within larger ones.

    Elements that change nothing (a delta of zero) are left out of a set that would reach them.

    Args:
        requests: Linears of equal size on one device and of one base, as in several models.
    """
    searches = [_Search(request) for request in requests]
    while pending := [search for search in searches if search.missing]:
        device = pending[0].delta.device
        share(_draw_all, pending, device)
        _look(pending)
        wanted = [(search, count) for search in pending for count in search.missing]
        for search, count, cut in chain.from_iterable(share(_settle_all, wanted, device)):
            if cut is not None:
                search.found[count] = cut
    return [
        tuple(search.found[count] for count in request.counts)
        for search, request in zip(searches, requests, strict=True)
    ]


@dataclass(frozen=True)
class _Interval:
    """A range of keys, both ends included, that very likely holds a threshold."""

    low: int
    high: int


@dataclass(frozen=True)
class _Seen:
    """The keys of one chunk that lie in a search's intervals.

    Attributes:
        above: (intervals,) number of keys above each interval.
        indices: (held,) indices of the keys in the intervals, from the chunk's start, ascending.
        keys: (held,) the keys in the intervals.
    """

    above: Sequence[int]
    indices: Integers
    keys: Integers


class _Search:
    """The search for the kept sets of one linear.

    Attributes:
        delta: The linear's delta.
        keys: Its keys.
        passes: The compiled passes, if there are any for these keys.
        found: Kept count -> its set.
        intervals: The ranges in which thresholds are searched, ascending and disjoint.
        seen: The keys that a pass found in the intervals, chunk by chunk.
    """

    def __init__(self, request: Request) -> None:
        self.delta, self.keys = request.delta, request.keys
        of_magnitudes = isinstance(self.keys, MagnitudeKeys)
        self.passes = passes_over(self.delta) if of_magnitudes else None
        self.found = {0: Cut(self.keys.largest), self.keys.numel: Cut(-1)}
        self._counts = sorted(set(request.counts))
        self.intervals: list[_Interval] = []
        self.seen: list[_Seen] = []
        # The sample grows as the square of the cube root: a larger one narrows the intervals by
        # less than it costs to draw.
        self._stride = 1 if self.keys.numel <= SMALL else round(self.keys.numel ** (1 / 3))

    @property
    def missing(self) -> list[int]:
        """The kept counts that are not found, ascending."""
        return [count for count in self._counts if count not in self.found]

    def draw(self) -> None:
        """Bracket the missing thresholds by a sample that is larger than the last one."""
        sample = self.keys.sample(self._stride).cpu().numpy()
        size = len(sample)
        ranks = [_ranks(size, count / self.keys.numel, self._stride == 1) for count in self.missing]
        inside = {rank for pair in ranks for rank in pair if 0 <= rank < size}
        ordered = numpy.partition(sample, sorted(inside)) if inside else sample
        lowest = self.keys.idle + 1
        self.intervals = _apart(
            _Interval(
                max(lowest, int(ordered[low])) if low >= 0 else lowest,
                int(ordered[high]) if high < size else self.keys.largest,
            )
            for low, high in ranks
        )
        self._stride = max(1, self._stride // 8)

    def look(self, keys: torch.Tensor, mask: torch.Tensor, inside: torch.Tensor) -> _Seen:
        """Find the keys of one chunk that lie in the intervals.

        Args:
            keys: (length,) keys of the chunk.
            mask: (length,) bool, written to.
            inside: (length,) bool, written to.
        """
        inside.zero_()
        above = []
        for interval in self.intervals:
            # The intervals are disjoint: a key in one of them is flipped once, all others twice.
            inside.logical_xor_(greater(keys, interval.low - 1, out=mask))
            inside.logical_xor_(greater(keys, interval.high, out=mask))
            above.append(count_true(mask))
        indices = true_indices(inside)
        return _Seen(above, indices.cpu().numpy(), keys.index_select(0, indices).cpu().numpy())

    def look_compiled(self, passes: DeltaPasses, start: int, stop: int, room: PassBuffers) -> _Seen:
        """Do the same for magnitudes by the compiled pass."""
        lows, highs = zip(
            *((interval.low, interval.high) for interval in self.intervals), strict=True
        )
        return _Seen(*passes.find_keys(start, stop, lows, highs, room))

    def settle(self, count: int) -> Cut | None:
        """The kept set of a count; None if its threshold lies in none of the intervals."""
        keys = numpy.concatenate([seen.keys for seen in self.seen])
        held = len(keys)
        # From the lowest interval up: `held` keys lie in this interval or in a higher one.
        for position, interval in enumerate(self.intervals):
            higher = int(numpy.count_nonzero(keys > interval.high))
            rest = count - sum(seen.above[position] for seen in self.seen)
            if rest > held - higher and interval.low <= self.keys.idle + 1:
                # All elements that remain change nothing.
                return Cut(self.keys.idle)
            if 0 < rest <= held - higher:
                threshold, larger = _from_top(keys, higher + rest)
                return self._cut(threshold, higher + rest - larger)
            held = higher
        return None

    def _cut(self, threshold: int, wanted: int) -> Cut:
        """The set of all keys above the threshold and `wanted` of the keys that equal it."""
        starts = [start for start, _ in self.delta.chunks()]
        # The hash is a bijection on 32 bits, so fewer than 2^32 indices have different hashes.
        hashes = numpy.concatenate(
            [
                self._hashes(start, seen, threshold)
                for start, seen in zip(starts, self.seen, strict=True)
            ]
        )
        if wanted == len(hashes):
            return Cut(threshold - 1)
        last, _ = _from_top(hashes, len(hashes) - wanted + 1)
        return Cut(threshold, last)

    def _hashes(self, start: int, seen: _Seen, key: int) -> Integers:
        """(tied,) hashes of the indices at which a chunk has a key."""
        if self.passes is not None:
            indices, keys = (
                values.astype(numpy.int32, copy=False) for values in (seen.indices, seen.keys)
            )
            return self.passes.hash_ties(start, indices, keys, key)
        equal = seen.indices[numpy.flatnonzero(seen.keys == key)]
        hashed: Integers = murmur_finaliser(
            torch.from_numpy(equal.astype(numpy.int64)) + start
        ).numpy()
        return hashed


def _draw_all(searches: Iterator[_Search]) -> None:
    for search in searches:
        search.draw()


def _settle_all(
    wanted: Iterator[tuple[_Search, int]],
) -> list[tuple[_Search, int, Cut | None]]:
    return [(search, count, search.settle(count)) for search, count in wanted]


def _look(searches: Sequence[_Search]) -> None:
    """Find the keys in the intervals of every search, in one pass."""
    first = searches[0].delta

    def work(spans: Iterator[tuple[int, int]]) -> list[tuple[int, list[_Seen]]]:
        deltas, _ = delta_chunks([search.delta for search in searches])
        magnitudes, room = Buffer(first.dtype, first.device), PassBuffers()
        masks = buffers(2, torch.bool, first.device)
        passed = []
        for start, stop in spans:
            seen = []
            for search, delta in zip(searches, deltas, strict=True):
                if search.passes is not None:
                    seen.append(search.look_compiled(search.passes, start, stop, room))
                    continue
                keys = search.keys.chunk(start, delta.read(start, stop), magnitudes)
                seen.append(search.look(keys, *(mask.of(stop - start) for mask in masks)))
            passed.append((start, seen))
        return passed

    ordered = in_order(share(work, first.chunks(), first.device))
    for search, *seen in zip(searches, *ordered, strict=True):
        search.seen = seen


def _ranks(size: int, share_kept: float, complete: bool) -> tuple[int, int]:
    """The ranks in a sample, both included, between which the threshold very likely lies.

    Args:
        size: Size of the sample, which is ascending from rank 0.
        share_kept: Share of all keys from the threshold on.
        complete: Whether the sample has all keys; then the rank is known.
    """
    rank = share_kept * size
    if complete:
        return size - round(rank), size - round(rank)
    # The rank in a random sample deviates by the square root; runs of keys are less random.
    margin = MARGIN * math.sqrt(rank * (1 - share_kept)) + 2
    return size - math.ceil(rank + margin), size - math.floor(rank - margin)


def _apart(intervals: Iterable[_Interval]) -> list[_Interval]:
    """The union of intervals as disjoint intervals, ascending."""
    apart: list[_Interval] = []
    for interval in sorted(intervals, key=lambda interval: interval.low):
        if apart and interval.low <= apart[-1].high:
            last = apart.pop()
            apart.append(_Interval(last.low, max(last.high, interval.high)))
        else:
            apart.append(interval)
    return apart


def _from_top(keys: Integers, rank: int) -> tuple[int, int]:
    """The rank-th largest of the keys, and the number of larger ones."""
    sample = keys[::SAMPLE]
    first, last = _ranks(len(sample), rank / len(keys), complete=False)
    first, last = max(0, first), min(len(sample) - 1, last)
    ordered = numpy.partition(sample, sorted({first, last}))
    low, high = int(ordered[first]), int(ordered[last])
    # Where many keys are equal, the threshold is nearly always in the sample.
    for guess in (high, low):
        larger = int(numpy.count_nonzero(keys > guess))
        if larger < rank <= larger + int(numpy.count_nonzero(keys == guess)):
            return guess, larger
    larger = int(numpy.count_nonzero(keys >= high))
    held = keys[numpy.flatnonzero((keys > low) & (keys < high))]
    if not larger < rank <= larger + len(held):
        larger, held = 0, keys
    position = len(held) - (rank - larger)
    found = int(numpy.partition(held, position)[position])
    return found, larger + int(numpy.count_nonzero(held > found))
