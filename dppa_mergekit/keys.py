"""Keys: by what the elements of a linear are ordered, when some are kept and others not.

Every element has an integer key; the elements with the largest keys are kept. The key of a
magnitude is the bit pattern of the delta without its sign, which orders as the magnitude does;
the key of a random selection is a hash of the element's index.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from dppa_mergekit.deltas import Buffer, Delta

MASK32 = 0xFFFFFFFF


def murmur_finaliser(index: torch.Tensor) -> torch.Tensor:
    """The 32-bit finaliser of MurmurHash3, of int64 indices modulo 2^32, as int64."""
    h = index & MASK32
    h = h ^ (h >> 16)
    h = (h * 0x85EBCA6B) & MASK32
    h = h ^ (h >> 13)
    h = (h * 0xC2B2AE35) & MASK32
    return h ^ (h >> 16)


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
