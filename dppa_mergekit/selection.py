"""Exact selection: which elements of a linear are kept, for several nested kept counts at once.

Every element has an integer key; the elements with the largest keys are kept. The key of a
magnitude is the bit pattern of the delta without its sign, which orders as the magnitude does;
the key of a random selection is a hash of the element's index. Equal keys are kept in the order of
the 32-bit finaliser of MurmurHash3 of their flat index, smallest first: bf16 checkpoints have many
equal deltas, and keeping the first of them would favour early rows.

A sample of the keys brackets the threshold of each count. One pass then gathers what lies above
the lowest bracket: the candidates, with their deltas. The thresholds are found exactly among those
within the brackets, and whoever applies them needs the candidates alone. A bracket that proves
wrong is drawn again from more keys, at last from all. Linears of several models are passed
together, so that they share the reading of the base.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy
import torch
from numpy.typing import NDArray

from dppa_mergekit.deltas import Buffer, Delta, delta_chunks
from dppa_mergekit.threads import in_order, share

MASK32 = 0xFFFFFFFF
SMALL = 1 << 14
"""Of no more keys than this, all are sorted."""

Integers: TypeAlias = NDArray[numpy.int32] | NDArray[numpy.int64]


@dataclass(frozen=True)
class Candidates:
    """The elements of one chunk that may be kept.

    Attributes:
        start: Where the chunk begins.
        index: (candidates,) int64, ascending, counted from the chunk's start.
        values: (candidates,) their deltas.
        keys: (candidates,) their keys.
    """

    start: int
    index: torch.Tensor
    values: torch.Tensor
    keys: torch.Tensor


class Keys(Protocol):
    """Keys of the elements of one linear, in flat order; never negative."""

    @property
    def numel(self) -> int:
        """The number of elements."""
        ...

    @property
    def largest(self) -> int:
        """No key is larger."""
        ...

    @property
    def idle(self) -> int:
        """The key of elements that change nothing, kept or not; -1 where there is none such."""
        ...

    def sample(self, stride: int) -> torch.Tensor:
        """The keys of every `stride`-th run of a few elements; all keys at stride 1."""
        ...

    def chunk(self, start: int, delta: torch.Tensor, buffer: Buffer) -> torch.Tensor:
        """The keys of the chunk of the delta that begins at `start`; may be in the buffer."""
        ...

    def of(self, values: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The keys of some elements, given their deltas and flat indices."""
        ...

    def keep(self, candidates: Candidates, above: int, out: torch.Tensor) -> None:
        """Write the candidates' deltas, with zeros where the key is not above `above`."""
        ...


@dataclass(frozen=True)
class MagnitudeKeys:
    """Order by |delta|; a delta of zero changes nothing, and of a LoRA whole linears are zero."""

    delta: Delta
    idle: int = 0

    @property
    def numel(self) -> int:
        """The number of elements."""
        return self.delta.numel

    @property
    def largest(self) -> int:
        """The bit pattern of infinity."""
        return int(torch.tensor(math.inf, dtype=self.delta.dtype).view(self._integers))

    def sample(self, stride: int) -> torch.Tensor:
        """The keys of every `stride`-th run of a few elements; all keys at stride 1."""
        return self.delta.sample(stride).abs_().view(self._integers)

    def chunk(self, start: int, delta: torch.Tensor, buffer: Buffer) -> torch.Tensor:
        """The keys of the chunk of the delta that begins at `start`, in the buffer."""
        return torch.abs(delta, out=buffer.of(delta.numel())).view(self._integers)

    def of(self, values: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The keys of some elements, given their deltas; their flat indices do not matter."""
        return values.abs().view(self._integers)

    def keep(self, candidates: Candidates, above: int, out: torch.Tensor) -> None:
        """Write the candidates' deltas, with zeros where the magnitude is not above."""
        threshold = -1.0
        if above >= 0:
            pattern = torch.tensor(above, dtype=self._integers)
            threshold = float(pattern.view(candidates.values.dtype))
        torch.hardshrink(candidates.values, threshold, out=out)

    @property
    def _integers(self) -> torch.dtype:
        return torch.int64 if self.delta.dtype == torch.float64 else torch.int32


@dataclass(frozen=True)
class HashedKeys:
    """Keys of 32 bits, int64, from the flat index alone: from no order, chunk, thread or device."""

    numel: int
    device: torch.device
    hashed: Callable[[torch.Tensor], torch.Tensor]
    largest: int = MASK32
    idle: int = -1

    def sample(self, stride: int) -> torch.Tensor:
        """The keys of every `stride`-th element; all keys at stride 1."""
        return self.hashed(torch.arange(0, self.numel, stride, device=self.device))

    def chunk(self, start: int, delta: torch.Tensor, buffer: Buffer) -> torch.Tensor:
        """The keys of the chunk that begins at `start`; neither delta nor buffer matters."""
        return self.hashed(torch.arange(start, start + delta.numel(), device=self.device))

    def of(self, values: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The keys of some elements, given their flat indices; their deltas do not matter."""
        return self.hashed(place)

    def keep(self, candidates: Candidates, above: int, out: torch.Tensor) -> None:
        """Write the candidates' deltas, with zeros where the key is not above `above`."""
        torch.gt(candidates.keys, above, out=out)
        out.mul_(candidates.values)


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


def murmur_finaliser(index: torch.Tensor) -> torch.Tensor:
    """The 32-bit finaliser of MurmurHash3, of int64 indices modulo 2^32, as int64."""
    h = index & MASK32
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & MASK32
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & MASK32
    return h ^ (h >> 16)


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
        self._drawn = False

    @property
    def done(self) -> bool:
        """Whether every kept set is found, and its candidates are gathered."""
        return self._drawn and all(count in self.found for count in self.counts)

    @property
    def lowest(self) -> int:
        """No smaller key is a candidate's."""
        lows = [bracket.low for bracket in self.brackets.values()]
        lowest = 0 if self._whole else min(lows, default=self.keys.largest)
        return max(lowest, self.keys.idle + 1)

    def draw(self) -> None:
        """Bracket the thresholds by a sample, larger than the last."""
        self.found = {0: Cut(self.keys.largest), self.keys.numel: Cut(-1)}
        if self._drawn:
            self._stride = max(1, self._stride // 8)
        self._drawn = True
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
