"""Keys: by what the elements of a linear are ordered, when some are kept and others not.

Every element has an integer key; the elements with the largest keys are kept. The key of a
magnitude is the bit pattern of the delta without its sign, which orders as the magnitude does;
the key of a random selection is a hash of the element's index.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from dppa_mergekit.deltas.delta import Buffer, Delta
from dppa_mergekit.deltas.masks import equal, greater, places

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
class Cut:
    """A kept set.

    Attributes:
        above: Elements with a larger key are kept.
        last: Of the elements whose key equals `above`, those are kept whose index has no larger
            hash than this; none if it is -1.
    """

    above: int
    last: int = -1

    def kept(self, start: int, keys: torch.Tensor) -> torch.Tensor:
        """Which elements are kept, in a chunk of these keys that begins at `start`: a new mask."""
        mask = torch.empty(keys.numel(), dtype=torch.bool, device=keys.device)
        greater(keys, self.above, out=mask)
        return mask if self.last < 0 else mask.index_fill_(0, self.ties(start, keys), True)

    def ties(self, start: int, keys: torch.Tensor) -> torch.Tensor:
        """Where, in a chunk of these keys that begins at `start`, what equals `above` is kept."""
        mask = torch.empty(keys.numel(), dtype=torch.bool, device=keys.device)
        tied = places(equal(keys, self.above, out=mask))
        hashes = murmur_finaliser(tied + start)
        return tied.index_select(
            0, places(greater(hashes, self.last, mask[: len(tied)]).logical_not_())
        )


Sieve: TypeAlias = Callable[[int, torch.Tensor], None]
"""Writes a chunk of the delta, with zeros where the key is not above the first argument."""


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

    def sieve(self, start: int, delta: torch.Tensor) -> Sieve:
        """What keeps, of the chunk of the delta that begins at `start`, the largest keys."""
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

    def sieve(self, start: int, delta: torch.Tensor) -> Sieve:
        """What keeps the largest magnitudes of a chunk of the delta."""

        def keep(above: int, out: torch.Tensor) -> None:
            threshold = -1.0
            if above >= 0:
                threshold = float(torch.tensor(above, dtype=self._integers).view(delta.dtype))
            torch.hardshrink(delta, threshold, out=out)

        return keep

    @property
    def _integers(self) -> torch.dtype:
        return torch.int64 if self.delta.dtype == torch.float64 else torch.int32


@dataclass(frozen=True)
class HashedKeys:
    """Keys of 32 bits, int64, from the flat index alone: from no order, chunk, thread or device.

    Attributes:
        numel: The number of elements.
        device: Where keys are made.
        hashed: Gives the keys of indices, which it may overwrite.
        largest: No key is larger.
        idle: -1, since every element counts.
    """

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

    def sieve(self, start: int, delta: torch.Tensor) -> Sieve:
        """What keeps, of the chunk that begins at `start`, the elements of the largest keys."""
        keys = self.hashed(torch.arange(start, start + delta.numel(), device=self.device))

        def keep(above: int, out: torch.Tensor) -> None:
            torch.gt(keys, above, out=out)
            out.mul_(delta)

        return keep
