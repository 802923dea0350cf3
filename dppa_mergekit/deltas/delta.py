"""The delta of a tensor, fine_tuned - base, made chunk by chunk in reused buffers.

Most of the time of a naive delta goes into page-faulting fresh buffers: on 11.5 M bf16 elements a
whole-tensor delta with its mean and tail took 68 ms, with one reused buffer 17 ms. So nothing
here, nor in what merges, makes a float32 copy of a whole 16-bit tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


def chunks(numel: int, device: torch.device) -> list[tuple[int, int]]:
    """(start, stop) of every chunk of a tensor: of a length that suits the device.

    On a CPU a few buffers of a chunk must fit the second-level cache; elsewhere a chunk must
    outweigh the start of a kernel.
    """
    length = CHUNK if device.type == "cpu" else 64 * CHUNK
    return [(start, min(start + length, numel)) for start in range(0, numel, length)]


CHUNK = 1 << 19
"""Elements per chunk on a CPU: two MiB of float32."""


@dataclass(frozen=True)
class Delta:
    """fine_tuned - base, flat: in float32, or in float64 where either is float64.

    Attributes:
        fine_tuned: (numel,) any floating dtype, borrowed.
        base: (numel,) likewise, or None where `fine_tuned` already is a delta.
    """

    fine_tuned: torch.Tensor
    base: torch.Tensor | None = None

    @classmethod
    def between(cls, base: torch.Tensor, fine_tuned: torch.Tensor) -> "Delta":
        """The delta of two tensors of one shape; borrowed, and copied only if not contiguous."""
        return cls(fine_tuned.detach().reshape(-1), base.detach().reshape(-1))

    @property
    def numel(self) -> int:
        """The number of elements."""
        return self.fine_tuned.numel()

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        tensors = (self.fine_tuned,) if self.base is None else (self.fine_tuned, self.base)
        wide = any(tensor.dtype == torch.float64 for tensor in tensors)
        return torch.float64 if wide else torch.float32

    @property
    def device(self) -> torch.device:
        """Where the values live."""
        return self.fine_tuned.device

    def chunks(self) -> list[tuple[int, int]]:
        """(start, stop) of every chunk."""
        return chunks(self.numel, self.device)

    def sample(self, stride: int) -> torch.Tensor:
        """A new tensor of the values in every `stride`-th run; of all values at stride 1.

        A run is what one cache line of 16-bit values holds at least: reading it costs as much as
        reading one value.
        """
        values = _runs(self.fine_tuned, stride).to(self.dtype, copy=True)
        return values if self.base is None else values.sub_(_runs(self.base, stride).to(self.dtype))


def linear_deltas(base: torch.Tensor, fine_tuned: torch.Tensor, held: int) -> list[Delta]:
    """The delta of every linear in a tensor; that of the whole tensor if it holds at most one.

    Args:
        base: Any shape, or (experts, rows, columns).
        fine_tuned: Of the same shape.
        held: Number of linears, from `linears_in`.
    """
    if held <= 1:
        return [Delta.between(base, fine_tuned)]
    return [Delta.between(base[expert], fine_tuned[expert]) for expert in range(held)]


RUN = 8
"""Elements per run of a sample."""


def _runs(tensor: torch.Tensor, stride: int) -> torch.Tensor:
    if stride == 1:
        return tensor
    return tensor[: tensor.numel() // RUN * RUN].view(-1, RUN)[::stride].flatten()


class Buffer:
    """Memory for one chunk, made at first use and used again; one for each thread."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._held = torch.empty(0, dtype=dtype, device=device)

    def of(self, length: int) -> torch.Tensor:
        """(length,) of what the buffer held before, or of nothing in particular."""
        if self._held.numel() < length:
            self._held = self._held.new_empty(length)
        return self._held if self._held.numel() == length else self._held[:length]


def buffers(number: int, dtype: torch.dtype, device: torch.device) -> list[Buffer]:
    """Several buffers, for one thread."""
    return [Buffer(dtype, device) for _ in range(number)]


class TensorChunks:
    """A flat tensor in the dtype of a delta, a chunk at a time; for one thread."""

    def __init__(self, tensor: torch.Tensor, dtype: torch.dtype) -> None:
        self._tensor = tensor
        self._cast = None if tensor.dtype == dtype else Buffer(dtype, tensor.device)
        self._place = (0, 0)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """The values in [start, stop): borrowed, until another chunk is read."""
        part = self._tensor[start:stop]
        if self._cast is None:
            return part
        values = self._cast.of(stop - start)
        if self._place != (start, stop):
            values.copy_(part)
            self._place = (start, stop)
        return values


class DeltaChunks:
    """A delta, a chunk at a time; for one thread."""

    def __init__(self, delta: Delta, buffer: Buffer, base: TensorChunks | None) -> None:
        """Read a delta into a buffer, given what reads its base; see `delta_chunks`."""
        self._fine_tuned, self._buffer, self._base = delta.fine_tuned, buffer, base

    def read(self, start: int, stop: int) -> torch.Tensor:
        """The values in [start, stop), to be changed at will, until another chunk is read."""
        values = self._buffer.of(stop - start).copy_(self._fine_tuned[start:stop])
        return values if self._base is None else values.sub_(self._base.read(start, stop))


def delta_chunks(deltas: Sequence[Delta]) -> tuple[list[DeltaChunks], TensorChunks | None]:
    """Readers of deltas from one base, of one dtype, for one thread, and that of the base.

    All share the memory of one chunk, which fits the cache: that of one is overwritten by that of
    the next.
    """
    first = deltas[0]
    buffer = Buffer(first.dtype, first.device)
    base = None if first.base is None else TensorChunks(first.base, first.dtype)
    return [DeltaChunks(delta, buffer, base) for delta in deltas], base
