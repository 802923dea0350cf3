"""The delta of a tensor, fine_tuned - base, computed chunk by chunk in reused buffers.

A naive delta spends most of its time on page faults of fresh buffers: on 11.5 M bf16 elements, a
whole-tensor delta with its mean and tail took 68 ms, and 17 ms with one reused buffer. So neither
this module nor a merge makes a float32 copy of a whole 16-bit tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

CHUNK = 1 << 19
"""Elements per chunk on a CPU: two MiB of float32."""

RUN = 8
"""Elements per run of a sample."""


def chunk_length(device: torch.device) -> int:
    """Return the number of elements of a chunk, which depends on the device.

    On a CPU, a few buffers of a chunk must fit the second-level cache; elsewhere, a chunk must take
    longer to compute than a kernel takes to start.
    """
    return CHUNK if device.type == "cpu" else 64 * CHUNK


def chunks(numel: int, device: torch.device) -> list[tuple[int, int]]:
    """Return (start, stop) of every chunk of a tensor."""
    length = chunk_length(device)
    return [(start, min(start + length, numel)) for start in range(0, numel, length)]


@dataclass(frozen=True, eq=False)
class Delta:
    """fine_tuned - base, flat, in float64 if either tensor is float64 and in float32 otherwise.

    Attributes:
        fine_tuned: (numel,) any floating dtype, borrowed.
        base: (numel,) likewise; None if `fine_tuned` already is a delta.
    """

    fine_tuned: torch.Tensor
    base: torch.Tensor | None = None

    @classmethod
    def between(cls, base: torch.Tensor, fine_tuned: torch.Tensor) -> "Delta":
        """Return the delta of two tensors of one shape, which are copied only if not contiguous."""
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
        """The device of the tensors."""
        return self.fine_tuned.device

    def chunks(self) -> list[tuple[int, int]]:
        """Return (start, stop) of every chunk."""
        return chunks(self.numel, self.device)

    def sample(self, stride: int) -> torch.Tensor:
        """Return a new tensor with the values of every `stride`-th run; all values at stride 1.

        A run of `RUN` 16-bit values fits one cache line, so it is read as fast as one value.
        """
        values = _runs(self.fine_tuned, stride).to(self.dtype, copy=True)
        return values if self.base is None else values.sub_(_runs(self.base, stride).to(self.dtype))


def linear_deltas(base: torch.Tensor, fine_tuned: torch.Tensor, linears: int) -> list[Delta]:
    """Return the delta of every linear in a tensor, or of the whole tensor if it has at most one.

    Args:
        base: (linears, rows, columns); of any shape if it has at most one linear.
        fine_tuned: The same shape.
        linears: Number of linears in the tensor, from `linears_in`.
    """
    if linears <= 1:
        return [Delta.between(base, fine_tuned)]
    return [Delta.between(base[expert], fine_tuned[expert]) for expert in range(linears)]


def _runs(tensor: torch.Tensor, stride: int) -> torch.Tensor:
    if stride == 1:
        return tensor
    return tensor[: tensor.numel() // RUN * RUN].view(-1, RUN)[::stride].flatten()


class Buffer:
    """Memory for one chunk, allocated at first use and reused; each thread needs its own."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._memory = torch.empty(0, dtype=dtype, device=device)

    def of(self, length: int) -> torch.Tensor:
        """Return the first `length` elements of the buffer, which grows as needed.

        They hold what was last written to them; after growing, their contents are undefined.
        """
        if self._memory.numel() < length:
            self._memory = self._memory.new_empty(length)
        return self._memory if self._memory.numel() == length else self._memory[:length]


def buffers(number: int, dtype: torch.dtype, device: torch.device) -> list[Buffer]:
    """Return several buffers, for one thread."""
    return [Buffer(dtype, device) for _ in range(number)]


class TensorChunks:
    """Reads a flat tensor in the dtype of a delta, a chunk at a time; for one thread."""

    def __init__(self, tensor: torch.Tensor, dtype: torch.dtype) -> None:
        self._tensor = tensor
        self._cast = None if tensor.dtype == dtype else Buffer(dtype, tensor.device)
        self._cast_span = (0, 0)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return the values in [start, stop); valid until the next read, and not to be changed."""
        part = self._tensor[start:stop]
        if self._cast is None:
            return part
        values = self._cast.of(stop - start)
        if self._cast_span != (start, stop):
            values.copy_(part)
            self._cast_span = (start, stop)
        return values


class DeltaChunks:
    """Reads a delta, a chunk at a time; for one thread."""

    def __init__(self, delta: Delta, buffer: Buffer, base: TensorChunks | None) -> None:
        """Prepare to read a delta into a buffer; `base` reads its base. See `delta_chunks`."""
        self._fine_tuned, self._buffer, self._base = delta.fine_tuned, buffer, base

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Return the values in [start, stop); valid until the next read, and free to change."""
        values = self._buffer.of(stop - start).copy_(self._fine_tuned[start:stop])
        return values if self._base is None else values.sub_(self._base.read(start, stop))


def delta_chunks(deltas: Sequence[Delta]) -> tuple[list[DeltaChunks], TensorChunks | None]:
    """Return a reader of each delta, and one of their base; for one thread.

    All readers of deltas share the memory of one chunk, so that it stays in the cache: reading
    from one overwrites what was read from another.

    Args:
        deltas: At least one; of the same base and dtype.

    Returns:
        The readers of the deltas; the reader of the base, None if the deltas have none.
    """
    first = deltas[0]
    buffer = Buffer(first.dtype, first.device)
    base = None if first.base is None else TensorChunks(first.base, first.dtype)
    return [DeltaChunks(delta, buffer, base) for delta in deltas], base
