"""Exact selection: which elements of a linear are kept, for several nested kept counts at once.

The elements with the largest keys are kept. Equal keys are kept in the order of the 32-bit
finaliser of MurmurHash3 of their flat index, smallest first: bf16 checkpoints have many equal
deltas, and keeping the first of them would favour early rows.

A sample of the keys brackets the threshold of each count. One pass then counts what lies above
each bracket and gathers what lies within; the thresholds are found exactly among those few. A
bracket that proves wrong is drawn again from more keys, at last from all. Linears of several
models are passed together, so that they share the reading of the base.
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
from dppa_mergekit.deltas.keys import Cut, Keys, MagnitudeKeys, murmur_finaliser
from dppa_mergekit.deltas.masks import count_true, greater, true_indices
from dppa_mergekit.deltas.threads import in_order, share

SMALL = 1 << 14
"""Of no more keys than this, all are sorted."""

Integers: TypeAlias = NDArray[numpy.int32] | NDArray[numpy.int64] | NDArray[numpy.uint32]


@dataclass(frozen=True)
class Request:
    """Kept counts of one linear, each from 0 to the number of its elements."""

    delta: Delta
    keys: Keys
    counts: Sequence[int]


def select(requests: Sequence[Request]) -> list[tuple[Cut, ...]]:
    """The kept sets of every request, count by count; that of a smaller count lies within.

    Where a count reaches into elements that change nothing, they are left out of the set.

    Args:
        requests: For linears of equal size on one device and of one base, as of several models.
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
    """Keys between which, both included, thresholds are all but sure to lie."""

    low: int
    high: int


@dataclass(frozen=True)
class _Seen:
    """What one chunk has in a search's intervals.

    Attributes:
        above: (intervals,) how many keys are larger.
        place: (held,) ascending: where the intervals' keys are, from the chunk's start.
        keys: (held,) what they are.
    """

    above: Sequence[int]
    place: Integers
    keys: Integers


class _Search:
    """The search for the kept sets of one linear.

    Attributes:
        delta: The linear's delta.
        keys: Its keys.
        passes: Compiled ones, if there are any for these keys.
        found: Kept count -> its set.
        intervals: Where their thresholds are looked for; ascending and apart.
        seen: What a pass saw in the intervals, chunk by chunk.
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
        """Bracket the missing thresholds by a sample, larger than the last."""
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
        """What one chunk, of these keys, has in the intervals.

        Args:
            keys: (length,) of the chunk.
            mask: (length,) bool, written to.
            inside: Likewise.
        """
        inside.zero_()
        above = []
        for interval in self.intervals:
            # Of intervals that are apart, what is above one and not above the next lies between.
            inside.logical_xor_(greater(keys, interval.low - 1, out=mask))
            inside.logical_xor_(greater(keys, interval.high, out=mask))
            above.append(count_true(mask))
        place = true_indices(inside)
        return _Seen(above, place.cpu().numpy(), keys.index_select(0, place).cpu().numpy())

    def look_compiled(self, passes: DeltaPasses, start: int, stop: int, room: PassBuffers) -> _Seen:
        """As `look`, of magnitudes."""
        lows, highs = zip(*((each.low, each.high) for each in self.intervals), strict=True)
        return _Seen(*passes.find_keys(start, stop, lows, highs, room))

    def settle(self, count: int) -> Cut | None:
        """The kept set of a count, if its threshold lies in one of the intervals."""
        keys = numpy.concatenate([each.keys for each in self.seen])
        held = len(keys)
        # From the lowest interval up: of what is held, so much lies in this one or above it.
        for position, interval in enumerate(self.intervals):
            higher = int(numpy.count_nonzero(keys > interval.high))
            rest = count - sum(each.above[position] for each in self.seen)
            if rest > held - higher and interval.low <= self.keys.idle + 1:
                # All that remain are idle.
                return Cut(self.keys.idle)
            if 0 < rest <= held - higher:
                threshold, larger = _from_top(keys, higher + rest)
                return self._cut(threshold, higher + rest - larger)
            held = higher
        return None

    def _cut(self, threshold: int, wanted: int) -> Cut:
        """The set of all keys above the threshold, and `wanted` of the seen that equal it."""
        starts = [start for start, _ in self.delta.chunks()]
        # A bijection on 32 bits, so the hashes of fewer than 2^32 indices differ from each other.
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
        """The hashes of the indices that a chunk has at a key."""
        if self.passes is not None:
            place, keys = (each.astype(numpy.int32, copy=False) for each in (seen.place, seen.keys))
            return self.passes.hash_ties(start, place, keys, key)
        equal = seen.place[numpy.flatnonzero(seen.keys == key)]
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
    """See what the intervals of every search hold, in one pass."""
    first = searches[0].delta

    def work(places: Iterator[tuple[int, int]]) -> list[tuple[int, list[_Seen]]]:
        deltas, _ = delta_chunks([search.delta for search in searches])
        magnitudes, room = Buffer(first.dtype, first.device), PassBuffers()
        masks = buffers(2, torch.bool, first.device)
        passed = []
        for start, stop in places:
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
    """Ranks in a sample between which, both included, the threshold is all but sure to lie.

    Args:
        size: Of the sample, which is ascending from rank 0.
        share_kept: Of all keys, the share from the threshold on.
        complete: Whether the sample is of all keys; then the rank is known.
    """
    rank = share_kept * size
    if complete:
        return size - round(rank), size - round(rank)
    # Of a random sample, the rank of the threshold deviates by the root; runs are less random.
    margin = MARGIN * math.sqrt(rank * (1 - share_kept)) + 2
    return size - math.ceil(rank + margin), size - math.floor(rank - margin)


MARGIN = 4
"""Deviations of a threshold's rank: to look again costs little, and so may happen at times."""


def _apart(intervals: Iterable[_Interval]) -> list[_Interval]:
    """The union of intervals, as intervals that do not overlap, ascending."""
    apart: list[_Interval] = []
    for each in sorted(intervals, key=lambda interval: interval.low):
        if apart and each.low <= apart[-1].high:
            last = apart.pop()
            each = _Interval(last.low, max(last.high, each.high))
        apart.append(each)
    return apart


def _from_top(keys: Integers, rank: int) -> tuple[int, int]:
    """The rank-th largest of the keys, and how many are larger."""
    sample = keys[::SAMPLE]
    first, last = _ranks(len(sample), rank / len(keys), complete=False)
    first, last = max(0, first), min(len(sample) - 1, last)
    ordered = numpy.partition(sample, sorted({first, last}))
    low, high = int(ordered[first]), int(ordered[last])
    # Where many keys are equal, the threshold all but always is one of the sample's.
    for guess in (high, low):
        larger = int(numpy.count_nonzero(keys > guess))
        if larger < rank <= larger + int(numpy.count_nonzero(keys == guess)):
            return guess, larger
    larger = int(numpy.count_nonzero(keys >= high))
    held = keys[numpy.flatnonzero((keys > low) & (keys < high))]
    if not larger < rank <= larger + len(held):
        larger, held = 0, keys
    place = len(held) - (rank - larger)
    found = int(numpy.partition(held, place)[place])
    return found, larger + int(numpy.count_nonzero(held > found))


SAMPLE = 32
"""Of so many keys, one is looked at to guess a threshold."""
