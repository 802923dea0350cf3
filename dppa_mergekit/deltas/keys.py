"""The keys by which the kept elements of a linear are chosen.

Every element has an integer key, and the elements with the largest keys are kept. Selection by
magnitude takes as key the bit pattern of the delta without its sign, which orders as the magnitude
does. Random selection takes a hash of the element's index.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch

from dppa_mergekit.deltas.delta import Buffer, Delta
from dppa_mergekit.deltas.masks import equal, greater, true_indices
from dppa_mergekit.deltas.tie_order import MASK32, murmur_finaliser


@dataclass(frozen=True)
class Cut:
    """A kept set of elements.

    Attributes:
        above: Elements with a larger key are kept.
        last: An element whose key equals `above` is kept if the hash of its index is at most this;
            -1 keeps none of them.
    """

    above: int
    last: int = -1

    def kept_mask(self, start: int, keys: torch.Tensor) -> torch.Tensor:
        """Return a new mask of the kept elements of the chunk that begins at `start`.

        Args:
            start: The index of the chunk's first element.
            keys: (length,) the keys of the chunk.
        """
        mask = torch.empty(keys.numel(), dtype=torch.bool, device=keys.device)
        greater(keys, self.above, out=mask)
        return mask if self.last < 0 else mask.index_fill_(0, self.ties(start, keys), True)

    def ties(self, start: int, keys: torch.Tensor) -> torch.Tensor:
        """Return the indices, within a chunk, of the kept elements whose key equals `above`.

        Args:
            start: The index of the chunk's first element.
            keys: (length,) the keys of the chunk.
        """
        mask = torch.empty(keys.numel(), dtype=torch.bool, device=keys.device)
        tied = true_indices(equal(keys, self.above, out=mask))
        hashes = murmur_finaliser(tied + start)
        return tied.index_select(
            0, true_indices(greater(hashes, self.last, mask[: len(tied)]).logical_not_())
        )


Sieve: TypeAlias = Callable[[int, torch.Tensor], None]
"""Called as `sieve(above, out)`: copies to `out` the elements of a chunk of the delta whose key is
larger than `above`, and writes zeros elsewhere."""


class Keys(Protocol):
    """The keys of the elements of one linear, in flat order; never negative."""

    @property
    def numel(self) -> int:
        """The number of elements."""
        ...

    @property
    def largest(self) -> int:
        """An upper bound of the keys."""
        ...

    @property
    def idle(self) -> int:
        """The key of elements that change nothing whether kept or not; -1 if there are none."""
        ...

    def sample(self, stride: int) -> torch.Tensor:
        """Return the keys of every `stride`-th run of a few elements; all keys at stride 1."""
        ...

    def chunk(self, start: int, delta: torch.Tensor, buffer: Buffer) -> torch.Tensor:
        """Return the keys of the chunk of the delta that begins at `start`.

        Args:
            start: The index of the chunk's first element.
            delta: (length,) the chunk of the delta.
            buffer: Memory that the result may use.
        """
        ...

    def sieve(self, start: int, delta: torch.Tensor) -> Sieve:
        """Return a function that keeps the largest keys of the chunk that begins at `start`.

        Args:
            start: The index of the chunk's first element.
            delta: (length,) the chunk of the delta.
        """
        ...


@dataclass(frozen=True)
class MagnitudeKeys:
    """Order by |delta|.

    A delta of zero changes nothing whether kept or not, and a LoRA leaves whole linears at zero.
    """

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
        """Return the keys of every `stride`-th run of a few elements; all keys at stride 1."""
        return self.delta.sample(stride).abs_().view(self._integers)

    def chunk(self, start: int, delta: torch.Tensor, buffer: Buffer) -> torch.Tensor:
        """Return the keys of the chunk of the delta that begins at `start`, in the buffer."""
        return torch.abs(delta, out=buffer.of(delta.numel())).view(self._integers)

    def sieve(self, start: int, delta: torch.Tensor) -> Sieve:
        """Return a function that keeps the largest magnitudes of a chunk of the delta."""

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
    """32-bit keys, as int64, that depend on the flat index alone.

    So they are the same in any order, and with any chunks, threads or devices.

    Attributes:
        numel: The number of elements.
        device: The device on which the keys are computed.
        hash_indices: Returns the keys of (length,) int64 indices, which it may overwrite.
        largest: An upper bound of the keys.
        idle: -1, since every element counts.
        words: Select these keys in the compiled passes; None if those do not know the hash.
    """

    numel: int
    device: torch.device
    hash_indices: Callable[[torch.Tensor], torch.Tensor]
    largest: int = MASK32
    idle: int = -1
    words: tuple[int, int] | None = None

    def sample(self, stride: int) -> torch.Tensor:
        """Return the keys of every `stride`-th element; all keys at stride 1."""
        return self.hash_indices(torch.arange(0, self.numel, stride, device=self.device))

    def chunk(self, start: int, delta: torch.Tensor, buffer: Buffer) -> torch.Tensor:
        """Return the keys of the chunk that begins at `start`; the buffer is not used."""
        return self.hash_indices(torch.arange(start, start + delta.numel(), device=self.device))

    def sieve(self, start: int, delta: torch.Tensor) -> Sieve:
        """Return a function that keeps the largest keys of the chunk that begins at `start`."""
        keys = self.hash_indices(torch.arange(start, start + delta.numel(), device=self.device))

        def keep(above: int, out: torch.Tensor) -> None:
            torch.gt(keys, above, out=out)
            out.mul_(delta)

        return keep
