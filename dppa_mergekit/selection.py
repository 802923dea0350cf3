"""Exact selection: which elements of a linear are kept, for several nested kept counts at once.

Every element has an integer key; the elements with the largest keys are kept. The key of a
magnitude is the bit pattern of the delta without its sign, which orders as the magnitude does;
the key of a random selection is a hash of the element's index. Equal keys are kept in the order of
the 32-bit finaliser of MurmurHash3 of their flat index, smallest first: bf16 checkpoints have many
equal deltas, and keeping the first of them would favour early rows.

The threshold of each count is found by radix selection: a tally of the upper 16 bits, then of the
next 16 among those that share the threshold's upper bits. Sorting would take fifty times as long.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy
import torch
from numpy.typing import NDArray

from dppa_mergekit.deltas import CHUNK, Delta

DIGIT = 16
MASK32 = 0xFFFFFFFF
Tally = NDArray[numpy.int64]


class Keys(Protocol):
    """Keys of the elements of one linear, in flat order."""

    @property
    def numel(self) -> int:
        """The number of elements."""
        ...

    @property
    def bits(self) -> int:
        """Bits that a key may have: 32 or 64. Keys are never negative."""
        ...

    @property
    def largest(self) -> int:
        """No key is larger."""
        ...

    @property
    def idle(self) -> int | None:
        """The key of elements that change nothing, kept or not; None where there is none such."""
        ...

    def of(self, offset: int, delta: torch.Tensor) -> torch.Tensor:
        """The keys of the chunk of the delta that begins at `offset`."""
        ...

    def chunks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (offset, keys); the keys are overwritten by the next chunk."""
        ...


@dataclass(frozen=True)
class MagnitudeKeys:
    """Order by |delta|."""

    delta: Delta

    @property
    def numel(self) -> int:
        """The number of elements."""
        return self.delta.numel

    @property
    def bits(self) -> int:
        """32, or 64 for a float64 delta."""
        return 64 if self.delta.dtype == torch.float64 else 32

    @property
    def largest(self) -> int:
        """All bits but the sign's."""
        return int(2 ** (self.bits - 1) - 1)

    @property
    def idle(self) -> int | None:
        """The key of a delta of zero; of a LoRA's model, whole linears may be."""
        return 0

    def of(self, offset: int, delta: torch.Tensor) -> torch.Tensor:
        """The bit patterns of a chunk of the delta, signs cleared."""
        if delta.dtype == torch.float64:
            return delta.view(torch.int64) & 0x7FFFFFFFFFFFFFFF
        return delta.view(torch.int32) & 0x7FFFFFFF

    def chunks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The keys of every chunk of the delta."""
        for offset, values in self.delta.chunks():
            yield offset, self.of(offset, values)


@dataclass(frozen=True)
class HashedKeys:
    """Keys of 32 bits, int64, from the flat index alone: from no order, chunk, thread or device."""

    numel: int
    device: torch.device
    hashed: Callable[[torch.Tensor], torch.Tensor]
    bits: int = 32
    largest: int = MASK32
    idle: int | None = None

    def of(self, offset: int, delta: torch.Tensor) -> torch.Tensor:
        """The keys of the chunk that begins at `offset`, as long as `delta`."""
        return self.hashed(
            torch.arange(offset, offset + delta.numel(), dtype=torch.int64, device=self.device)
        )

    def chunks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The keys of every chunk."""
        for start in range(0, self.numel, CHUNK):
            stop = min(start + CHUNK, self.numel)
            index = torch.arange(start, stop, dtype=torch.int64, device=self.device)
            yield start, self.hashed(index)


@dataclass(frozen=True)
class Cut:
    """The kept set of one count: every key above `above`, and the elements at `ties`.

    Attributes:
        above: Elements with a larger key are kept.
        ties: Flat indices, ascending, of the kept elements whose key equals `above`.
    """

    above: int
    ties: torch.Tensor

    def ties_within(self, start: int, stop: int) -> torch.Tensor:
        """Those ties that lie in the chunk [start, stop), counted from its start."""
        if self.ties.numel() == 0:
            return self.ties
        bounds = torch.searchsorted(
            self.ties, torch.tensor([start, stop], device=self.ties.device)
        ).tolist()
        return self.ties[bounds[0] : bounds[1]] - start


def murmur_finaliser(index: torch.Tensor) -> torch.Tensor:
    """The 32-bit finaliser of MurmurHash3, of int64 indices modulo 2^32, as int64."""
    h = index & MASK32
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & MASK32
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & MASK32
    return h ^ (h >> 16)


def cut(keys: Keys, counts: Sequence[int], device: torch.device) -> tuple[Cut, ...]:
    """The kept sets of some kept counts; a smaller one lies within a larger one.

    Where a count reaches into elements that change nothing, they are left out of the set.

    Args:
        keys: The keys of one linear.
        counts: Kept counts, each from 0 to the number of elements.
        device: Where the ties are put.
    """
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    thresholds = dict(_thresholds(keys, sorted({k for k in counts if 0 < k < keys.numel})))
    tied = _tied_indices(keys, sorted({key for key, wanted in thresholds.values() if wanted}))
    cuts = []
    for count in counts:
        if count <= 0:
            cuts.append(Cut(keys.largest, nothing))
        elif count >= keys.numel:
            cuts.append(Cut(-1, nothing))
        else:
            key, wanted = thresholds[count]
            ties = _first_by_hash(tied[key], wanted) if wanted else nothing
            cuts.append(Cut(key, ties))
    return tuple(cuts)


def _thresholds(keys: Keys, counts: list[int]) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield (count, (key, wanted)): kept are all above `key`, and `wanted` of those equal to it."""
    if not counts:
        return
    prefix = dict.fromkeys(counts, 0)
    remaining = {count: count for count in counts}
    equal: dict[int, int] = {}
    for shift in range(keys.bits - DIGIT, -1, -DIGIT):
        tallies = _tally(keys, shift, sorted(set(prefix.values())))
        for count in counts:
            tally = tallies[prefix[count]]
            at_least = tally[::-1].cumsum()[::-1]
            # The largest digit from which on there are at least as many elements as remain.
            digit = int(numpy.count_nonzero(at_least >= remaining[count])) - 1
            equal[count] = int(tally[digit])
            remaining[count] -= int(at_least[digit]) - equal[count]
            prefix[count] = (prefix[count] << DIGIT) | digit
    for count in counts:
        if prefix[count] == keys.idle:
            yield count, (prefix[count], 0)
        elif remaining[count] == equal[count]:
            yield count, (prefix[count] - 1, 0)
        else:
            yield count, (prefix[count], remaining[count])


def _tally(keys: Keys, shift: int, prefixes: list[int]) -> dict[int, Tally]:
    """Per prefix of the bits above, how often each 16-bit digit at `shift` occurs.

    Tallies are NumPy's: starting threads for 65536 numbers costs more than counting them.
    """
    size = 1 << DIGIT
    first = shift == keys.bits - DIGIT
    tallies = {prefix: numpy.zeros(size, dtype=numpy.int64) for prefix in prefixes}
    for _, chunk in keys.chunks():
        for prefix, tally in tallies.items():
            alike = chunk if first else chunk[(chunk >> (shift + DIGIT)) == prefix]
            if alike.numel():
                digits = (alike >> shift) & (size - 1)
                tally += torch.bincount(digits, minlength=size).cpu().numpy()
    return tallies


def _tied_indices(keys: Keys, thresholds: list[int]) -> dict[int, torch.Tensor]:
    """Per threshold, the flat indices of the elements that have exactly that key, ascending."""
    if not thresholds:
        return {}
    found: dict[int, list[torch.Tensor]] = {key: [] for key in thresholds}
    for offset, chunk in keys.chunks():
        for key, parts in found.items():
            parts.append((chunk == key).nonzero().flatten() + offset)
    return {key: torch.cat(parts) for key, parts in found.items()}


def _first_by_hash(indices: torch.Tensor, wanted: int) -> torch.Tensor:
    """The `wanted` of the indices that come first in the order of their hash, ascending."""
    # A bijection on 32 bits, so the hashes of fewer than 2^32 indices differ from each other.
    hashes = murmur_finaliser(indices)
    keys = HashedKeys(len(indices), indices.device, lambda position: MASK32 - hashes[position])
    ((_, (above, _)),) = _thresholds(keys, [wanted])
    return indices[MASK32 - hashes > above]
