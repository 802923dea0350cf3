"""Exact selection: which elements of a linear are kept, for several nested kept counts at once.

The elements with the largest keys are kept. Equal keys are kept in the order of the 32-bit
finaliser of MurmurHash3 of their flat index, smallest first: bf16 checkpoints have many equal
deltas, and keeping the first of them would favour early rows.

A sample of the keys brackets the threshold of each count. One pass then gathers what lies above
the lowest bracket: the candidates, with their deltas. The thresholds are found exactly among those
within the brackets, and whoever applies them needs the candidates alone. A bracket that proves
wrong is drawn again from more keys, at last from all. Linears of several models are passed
together, so that they share the reading of the base.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy
import torch
from numpy.typing import NDArray

from dppa_mergekit.deltas import Buffer, Delta, delta_chunks
from dppa_mergekit.keys import Candidates, Keys, murmur_finaliser
from dppa_mergekit.threads import in_order, share

SMALL = 1 << 14
"""Of no more keys than this, all are sorted."""

Integers: TypeAlias = NDArray[numpy.int32] | NDArray[numpy.int64]


@dataclass(frozen=True)
class Cut:
    """The kept set of one count: every key above `above`, and the candidates at `ties`.

    Attributes:
        above: Elements with a larger key are kept.
        ties: (chunks,) the positions, among each chunk's candidates, of the kept ones whose key
            equals `above`; empty if there are none.
    """

    above: int
    ties: Sequence[torch.Tensor] = ()


@dataclass(frozen=True)
class Selection:
    """The kept sets of one linear.

    Attributes:
        cuts: One for each count asked for; of two, that of the smaller count lies within.
        candidates: (chunks,) all that any of them keeps, and a few more.
    """

    cuts: tuple[Cut, ...]
    candidates: Sequence[Candidates]


@dataclass(frozen=True)
class Request:
    """Kept counts of one linear, each from 0 to the number of its elements."""

    delta: Delta
    keys: Keys
    counts: Sequence[int]


def select(requests: Sequence[Request]) -> list[Selection]:
    """The kept sets of every request.

    Where a count reaches into elements that change nothing, they are left out of the set.

    Args:
        requests: For linears of equal size on one device and of one base, as of several models.
    """
    searches = [_Search(request) for request in requests]
    while pending := [search for search in searches if not search.done]:
        device = pending[0].delta.device
        share(_draw_all, pending, device)
        _gather(pending)
        counts = [(search, count) for search in pending for count in search.counts]
        share(_settle_all, counts, device)
    return [
        search.selection(request.counts) for search, request in zip(searches, requests, strict=True)
    ]


@dataclass(frozen=True)
class _Bracket:
    """Keys between which, both included, a threshold is all but sure to lie."""

    low: int
    high: int


@dataclass(frozen=True)
class _Within:
    """What lies in a bracket, of one chunk.

    Attributes:
        above: How many keys are larger than the bracket's.
        position: (held,) where the bracket's stand among the candidates.
        keys: (held,) what they are.
    """

    above: int
    position: NDArray[numpy.int64]
    keys: Integers


class _Search:
    """The search for the kept sets of one linear.

    Attributes:
        delta: The linear's delta.
        keys: Its keys.
        counts: The kept counts that are neither none nor all, ascending.
        found: Kept count -> its set.
        brackets: Kept count -> where its threshold is looked for.
        candidates: What lies in the lowest bracket or above it, chunk by chunk.
        within: Chunk by chunk, kept count -> what lies in its bracket.
    """

    def __init__(self, request: Request) -> None:
        self.delta, self.keys = request.delta, request.keys
        self.counts = sorted(set(request.counts) - {0, self.keys.numel})
        self._whole = self.keys.numel in request.counts
        self.found: dict[int, Cut] = {}
        self.brackets: dict[int, _Bracket] = {}
        self.candidates: list[Candidates] = []
        self.within: list[dict[int, _Within]] = []
        # The sample grows as the square of the cube root: a larger one narrows the brackets by
        # less than it costs to draw.
        self._stride = 1 if self.keys.numel <= SMALL else round(self.keys.numel ** (1 / 3))

    @property
    def done(self) -> bool:
        """Whether every kept set is found, and its candidates are gathered."""
        return bool(self.found) and all(count in self.found for count in self.counts)

    @property
    def lowest(self) -> int:
        """No smaller key is a candidate's."""
        lows = [bracket.low for bracket in self.brackets.values()]
        lowest = 0 if self._whole else min(lows, default=self.keys.largest)
        return max(lowest, self.keys.idle + 1)

    def draw(self) -> None:
        """Bracket the thresholds by a sample, larger than the last."""
        if self.found:
            self._stride = max(1, self._stride // 8)
        self.found = {0: Cut(self.keys.largest), self.keys.numel: Cut(-1)}
        sample = self.keys.sample(self._stride).cpu().numpy()
        size = len(sample)
        ranks = {
            count: _ranks(size, count / self.keys.numel, self._stride == 1) for count in self.counts
        }
        inside = {rank for pair in ranks.values() for rank in pair if 0 <= rank < size}
        ordered = numpy.partition(sample, sorted(inside)) if inside else sample
        self.brackets = {
            count: _Bracket(
                int(ordered[low]) if low >= 0 else 0,
                int(ordered[high]) if high < size else int(numpy.iinfo(sample.dtype).max),
            )
            for count, (low, high) in ranks.items()
        }

    def look(self, keys: torch.Tensor) -> dict[int, _Within]:
        """What lies in each bracket, among the keys of one chunk's candidates."""
        values = keys.cpu().numpy()
        found = {}
        for count, bracket in self.brackets.items():
            above = values > bracket.high
            inside = (values >= max(bracket.low, self.keys.idle + 1)) ^ above
            position = numpy.flatnonzero(inside)
            found[count] = _Within(int(numpy.count_nonzero(above)), position, values[position])
        return found

    def settle(self, count: int) -> None:
        """Find the kept set of a count, if its threshold lies in its bracket."""
        within = [each[count] for each in self.within]
        keys = numpy.concatenate([each.keys for each in within])
        rest = count - sum(each.above for each in within)
        if rest > len(keys) and self.brackets[count].low <= self.keys.idle:
            # All that remain are idle.
            self.found[count] = Cut(self.keys.idle)
        elif 0 < rest <= len(keys):
            threshold = _from_top(keys, rest)
            wanted = rest - int(numpy.count_nonzero(keys > threshold))
            self.found[count] = self._cut(threshold, wanted, within)

    def _cut(self, threshold: int, wanted: int, within: Sequence[_Within]) -> Cut:
        """The set of all keys above the threshold, and `wanted` of those that equal it."""
        ties = [each.position[numpy.flatnonzero(each.keys == threshold)] for each in within]
        if wanted == sum(map(len, ties)):
            return Cut(threshold - 1)
        device = self.delta.device
        places = [
            each.index.index_select(0, torch.from_numpy(tied).to(device)).cpu() + each.start
            for each, tied in zip(self.candidates, ties, strict=True)
        ]
        # A bijection on 32 bits, so the hashes of fewer than 2^32 indices differ from each other.
        hashes = murmur_finaliser(torch.cat(places)).numpy()
        kept = hashes <= numpy.partition(hashes, wanted - 1)[wanted - 1]
        parts = numpy.split(kept, numpy.cumsum([len(tied) for tied in ties])[:-1])
        return Cut(
            threshold,
            [
                torch.from_numpy(tied[numpy.flatnonzero(part)]).to(device)
                for tied, part in zip(ties, parts, strict=True)
            ],
        )

    def selection(self, counts: Sequence[int]) -> Selection:
        """What was searched for."""
        return Selection(tuple(self.found[count] for count in counts), self.candidates)


def _draw_all(searches: Iterator[_Search]) -> None:
    for search in searches:
        search.draw()


def _settle_all(places: Iterator[tuple[_Search, int]]) -> None:
    for search, count in places:
        search.settle(count)


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
    margin = 6 * math.sqrt(rank * (1 - share_kept)) + 2
    return size - math.ceil(rank + margin), size - math.floor(rank - margin)


def _from_top(keys: Integers, rank: int) -> int:
    """The rank-th largest of the keys; found at once where many are equal."""
    sample = keys[::GUESS]
    place = min(rank // GUESS, len(sample) - 1)
    guess = int(numpy.partition(sample, len(sample) - 1 - place)[len(sample) - 1 - place])
    above = int(numpy.count_nonzero(keys > guess))
    if above < rank <= above + int(numpy.count_nonzero(keys == guess)):
        return guess
    return int(numpy.partition(keys, len(keys) - rank)[len(keys) - rank])


GUESS = 32
"""Of so many keys within a bracket, one is looked at to guess the threshold."""


_Found: TypeAlias = tuple[Candidates, dict[int, _Within]]


def _gather(searches: Sequence[_Search]) -> None:
    """Find the candidates of every search, in one pass."""
    first = searches[0].delta

    def work(places: Iterator[tuple[int, int]]) -> list[tuple[int, list[_Found]]]:
        deltas, _ = delta_chunks([search.delta for search in searches])
        buffer, mask = Buffer(first.dtype, first.device), Buffer(torch.bool, first.device)
        passed = []
        for start, stop in places:
            found = []
            for search, delta in zip(searches, deltas, strict=True):
                values = delta.read(start, stop)
                keys = search.keys.chunk(start, values, buffer)
                index = _places(keys, search.lowest, mask.of(stop - start))
                held = values.index_select(0, index)
                candidates = Candidates(start, index, held, search.keys.of(held, index + start))
                found.append((candidates, search.look(candidates.keys)))
            passed.append((start, found))
        return passed

    ordered = in_order(share(work, first.chunks(), first.device))
    for position, search in enumerate(searches):
        search.candidates = [found[position][0] for found in ordered]
        search.within = [found[position][1] for found in ordered]


def _places(keys: torch.Tensor, lowest: int, mask: torch.Tensor) -> torch.Tensor:
    """Where a key is not below `lowest`, ascending."""
    if keys.device.type != "cpu":
        return torch.ge(keys, lowest, out=mask).nonzero().flatten()
    # On a CPU NumPy compares and finds places several times as fast as torch.
    return torch.from_numpy(
        numpy.flatnonzero(numpy.greater_equal(keys.numpy(), lowest, out=mask.numpy()))
    )
