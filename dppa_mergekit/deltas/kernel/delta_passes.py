"""The compiled passes over one delta: sums, keys within intervals, and writing of kept elements."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from numpy.typing import NDArray

from dppa_mergekit.deltas.delta import Buffer, Delta
from dppa_mergekit.deltas.kernel import library


class PassBuffers:
    """Memory for the results of the passes over one chunk; for one thread."""

    def __init__(self) -> None:
        cpu = torch.device("cpu")
        self.magnitudes = Buffer(torch.float32, cpu)
        self.indices, self.keys = Buffer(torch.int32, cpu), Buffer(torch.int32, cpu)


@dataclass(frozen=True)
class DeltaPasses:
    """The passes over one delta.

    Attributes:
        compiled: The library.
        fine_tuned: (numel,) contiguous, on the CPU. The passes only get its address, so it is held
            here to keep it alive.
        base: (numel,) likewise, of the same dtype.
    """

    compiled: ctypes.CDLL
    fine_tuned: torch.Tensor
    base: torch.Tensor

    def sum_magnitudes(
        self, start: int, stop: int, floor: float, buffers: PassBuffers
    ) -> tuple[float, int, NDArray[numpy.float32]]:
        """Sum the magnitudes of a chunk, count the non-zero ones, and gather the largest.

        Args:
            start: Where the chunk begins.
            stop: Where it ends.
            floor: Magnitudes above it are gathered; infinity gathers none.
            buffers: Overwritten.

        Returns:
            The sum; the number of non-zero magnitudes; (gathered,) magnitudes, in flat order.
        """
        above = buffers.magnitudes.of(stop - start)
        total, nonzero = ctypes.c_double(), ctypes.c_int64()
        found = self._function("sum_magnitudes")(
            *self._chunk(start, stop),
            floor,
            above.data_ptr(),
            ctypes.byref(total),
            ctypes.byref(nonzero),
        )
        return total.value, nonzero.value, above[:found].numpy().copy()

    def sum_tails(self, start: int, stop: int, bounds: Sequence[float]) -> list[tuple[float, int]]:
        """Return, for each bound, the sum and the number of a chunk's magnitudes above it.

        Args:
            start: Where the chunk begins.
            stop: Where it ends.
            bounds: Values of float32, not negative.
        """
        limits = numpy.array(bounds, numpy.float32)
        total, count = numpy.empty(len(limits)), numpy.empty(len(limits), numpy.int64)
        self._function("sum_tails")(
            *self._chunk(start, stop),
            len(limits),
            limits.ctypes.data,
            total.ctypes.data,
            count.ctypes.data,
        )
        return list(zip(total.tolist(), count.tolist(), strict=True))

    def find_keys(
        self, start: int, stop: int, low: Sequence[int], high: Sequence[int], buffers: PassBuffers
    ) -> tuple[list[int], NDArray[numpy.int32], NDArray[numpy.int32]]:
        """Find the elements of a chunk whose magnitude's key lies within any of several intervals.

        Args:
            start: Where the chunk begins.
            stop: Where it ends.
            low: (intervals,) the smallest key of each interval, positive.
            high: (intervals,) the largest key of each interval.
            buffers: Overwritten.

        Returns:
            (intervals,) how many keys are above each interval; (found,) indices of the elements
            within an interval, counted from `start`, ascending; (found,) their keys.
        """
        indices, keys = buffers.indices.of(stop - start), buffers.keys.of(stop - start)
        above = numpy.empty(len(low), numpy.int64)
        lows, highs = numpy.array(low, numpy.int32), numpy.array(high, numpy.int32)
        found = self._function("find_keys")(
            *self._chunk(start, stop),
            len(low),
            lows.ctypes.data,
            highs.ctypes.data,
            above.ctypes.data,
            indices.data_ptr(),
            keys.data_ptr(),
        )
        return above.tolist(), indices[:found].numpy().copy(), keys[:found].numpy().copy()

    def hash_ties(
        self, start: int, indices: NDArray[numpy.int32], keys: NDArray[numpy.int32], key: int
    ) -> NDArray[numpy.uint32]:
        """Return the hashes of the elements that have a given key, in flat order.

        Args:
            start: Where the chunk begins.
            indices: (found,) contiguous, as returned by `find_keys` for this chunk.
            keys: (found,) likewise.
            key: The key of the wanted elements.
        """
        hashes = numpy.empty(len(keys), numpy.uint32)
        found = self.compiled.hash_ties(
            indices.ctypes.data, keys.ctypes.data, len(keys), key, start, hashes.ctypes.data
        )
        return hashes[:found]

    def write_kept(
        self,
        start: int,
        stop: int,
        bits: NDArray[numpy.uint8],
        divisor: float,
        factor: float,
        weight: float,
        out: torch.Tensor,
    ) -> None:
        """Write base + weight * (factor * (delta / divisor)) of kept elements where they belong.

        This delta must hold the kept elements only.

        Args:
            start: The first of the kept elements to write.
            stop: The end of the kept elements to write.
            bits: (length / 8, rounded up) contiguous; `stop - start` bits are set, one for each
                element of `out` to write. The lowest bit of a byte is the first.
            divisor: Divides the delta first.
            factor: Multiplies the quotient.
            weight: Multiplies the product.
            out: (length,) contiguous, of the tensors' dtype; its other elements stay as they are.
        """
        self._function("write_kept")(
            *self._chunk(start, stop),
            bits.ctypes.data,
            out.numel(),
            divisor,
            factor,
            weight,
            out.data_ptr(),
        )

    def _function(self, name: str) -> "ctypes._NamedFuncPointer":
        return library.function_of_dtype(self.compiled, name, self.fine_tuned.dtype)

    def _chunk(self, start: int, stop: int) -> tuple[int, int, int]:
        """The addresses of a chunk's fine-tuned and base values, and the chunk's length."""
        offset = start * self.fine_tuned.element_size()
        return self.fine_tuned.data_ptr() + offset, self.base.data_ptr() + offset, stop - start


def passes_over(delta: Delta) -> DeltaPasses | None:
    """Return the compiled passes over a delta; None if there are none for it.

    They exist for a delta of two tensors of one dtype of `library.DTYPES`, both on the CPU,
    contiguous and aligned.
    """
    compiled = library.load()
    fine_tuned, base = delta.fine_tuned, delta.base
    if (
        compiled is None
        or base is None
        or fine_tuned.dtype != base.dtype
        or fine_tuned.dtype not in library.DTYPES
    ):
        return None
    if not all(
        tensor.device.type == "cpu"
        and tensor.is_contiguous()
        and tensor.data_ptr() % tensor.element_size() == 0
        for tensor in (fine_tuned, base)
    ):
        return None
    return DeltaPasses(compiled, fine_tuned, base)
