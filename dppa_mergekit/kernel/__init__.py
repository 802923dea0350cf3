"""The compiled passes over deltas, for packages that were installed where a C compiler is.

They do what PyTorch and NumPy do elsewhere in the package, in one loop in place of one for each
operation, and write the same bytes. They know deltas of float32, bfloat16 and float16 tensors on
the CPU.
"""

import ctypes
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray

from dppa_mergekit.deltas import Buffer, Delta
from dppa_mergekit.keys import Cut

LOG = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_POINTER, _LENGTH, _FLOAT, _KEY = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32


class Room:
    """Memory for what the passes find in one chunk; for one thread."""

    def __init__(self) -> None:
        cpu = torch.device("cpu")
        self.floats = Buffer(torch.float32, cpu)
        self.places, self.keys = Buffer(torch.int32, cpu), Buffer(torch.int32, cpu)


@dataclass(frozen=True)
class Passes:
    """The passes over one delta.

    Attributes:
        compiled: The functions of the library.
        tuned: (numel,) contiguous, on the CPU; kept here, since the passes have its address only.
        base: (numel,) likewise, of the same dtype.
    """

    compiled: ctypes.CDLL
    tuned: torch.Tensor
    base: torch.Tensor

    def sums(
        self, start: int, stop: int, floor: float, room: Room
    ) -> tuple[float, int, NDArray[numpy.float32]]:
        """Of a chunk: the sum of magnitudes, the number that are not zero, those above a floor."""
        above = room.floats.of(stop - start)
        total, nonzero = ctypes.c_double(), ctypes.c_int64()
        found = self._pass("sums")(
            *self._chunk(start, stop),
            floor,
            above.data_ptr(),
            ctypes.byref(total),
            ctypes.byref(nonzero),
        )
        return total.value, nonzero.value, above[:found].numpy().copy()

    def tails(self, start: int, stop: int, bounds: Sequence[float]) -> list[tuple[float, int]]:
        """Of a chunk, per bound: the sum and the number of the magnitudes above it.

        Args:
            start: Where the chunk begins.
            stop: Where it ends.
            bounds: Not negative; of float32.
        """
        limits = numpy.array(bounds, numpy.float32)
        total, number = numpy.empty(len(limits)), numpy.empty(len(limits), numpy.int64)
        self._pass("tails")(
            *self._chunk(start, stop),
            len(limits),
            limits.ctypes.data,
            total.ctypes.data,
            number.ctypes.data,
        )
        return list(zip(total.tolist(), number.tolist(), strict=True))

    def look(
        self, start: int, stop: int, low: Sequence[int], high: Sequence[int], room: Room
    ) -> tuple[list[int], NDArray[numpy.int32], NDArray[numpy.int32]]:
        """Of a chunk: the keys above each interval, and the places and keys within any of them.

        Args:
            start: Where the chunk begins.
            stop: Where it ends.
            low: (intervals,) of keys of magnitudes, positive.
            high: (intervals,) included.
            room: Overwritten.

        Returns:
            (intervals,) numbers; (held,) places from `start` on, ascending; (held,) keys.
        """
        places, keys = room.places.of(stop - start), room.keys.of(stop - start)
        above = numpy.empty(len(low), numpy.int64)
        lows, highs = numpy.array(low, numpy.int32), numpy.array(high, numpy.int32)
        found = self._pass("look")(
            *self._chunk(start, stop),
            len(low),
            lows.ctypes.data,
            highs.ctypes.data,
            above.ctypes.data,
            places.data_ptr(),
            keys.data_ptr(),
        )
        return above.tolist(), places[:found].numpy().copy(), keys[:found].numpy().copy()

    def hashes(
        self, start: int, place: NDArray[numpy.int32], keys: NDArray[numpy.int32], key: int
    ) -> NDArray[numpy.uint32]:
        """Of what `look` found in a chunk: the hashes of the indices whose key is this, in order.

        Args:
            start: Where the chunk begins.
            place: (held,) contiguous, as `look` returns them.
            keys: (held,) likewise.
            key: Of which the hashes are wanted.
        """
        hashed = numpy.empty(len(keys), numpy.uint32)
        found = self.compiled.hashes(
            place.ctypes.data, keys.ctypes.data, len(keys), key, start, hashed.ctypes.data
        )
        return hashed[:found]

    def add(
        self,
        start: int,
        stop: int,
        cuts: Sequence[Cut],
        factors: Sequence[float],
        weight: float,
        total: torch.Tensor,
    ) -> None:
        """Add a chunk of the weighted, amplified delta.

        Args:
            start: Where the chunk begins.
            stop: Where it ends.
            cuts: Nested kept sets, the smallest first.
            factors: (cuts,) of the elements that are in this set and in no smaller one.
            weight: Of the delta.
            total: (stop - start,) float32, contiguous; added to.
        """
        above = numpy.array([cut.above for cut in cuts], numpy.int32)
        last = numpy.array([cut.last for cut in cuts], numpy.int64)
        scales = numpy.array(factors, numpy.float32)
        self._pass("add")(
            *self._chunk(start, stop),
            start,
            len(cuts),
            above.ctypes.data,
            last.ctypes.data,
            scales.ctypes.data,
            weight,
            total.data_ptr(),
        )

    def place(
        self,
        start: int,
        stop: int,
        bits: NDArray[numpy.uint8],
        divisor: float,
        factor: float,
        weight: float,
        out: torch.Tensor,
    ) -> None:
        """Where this is the delta of kept elements only: write base plus delta to their places.

        Args:
            start: Of the kept elements, the first to write.
            stop: The end of those to write.
            bits: (length / 8, rounded up) contiguous, with `stop - start` bits set: where they
                belong in `out`. The lowest bit of a byte is the first.
            divisor: What the delta is divided by first.
            factor: What it is multiplied by then.
            weight: And by then.
            out: (length,) contiguous, of the tensors' dtype; the other elements stay.
        """
        self._pass("place")(
            *self._chunk(start, stop),
            bits.ctypes.data,
            out.numel(),
            divisor,
            factor,
            weight,
            out.data_ptr(),
        )

    def _pass(self, name: str) -> "ctypes._NamedFuncPointer":
        found: ctypes._NamedFuncPointer = getattr(
            self.compiled, f"{name}_{_TYPES[self.tuned.dtype]}"
        )
        return found

    def _chunk(self, start: int, stop: int) -> tuple[int, int, int]:
        offset = start * self.tuned.element_size()
        return self.tuned.data_ptr() + offset, self.base.data_ptr() + offset, stop - start


def passes_over(delta: Delta) -> Passes | None:
    """The compiled passes, if there are any for this delta."""
    library = _library()
    tuned, base = delta.tuned, delta.base
    if library is None or base is None or tuned.dtype != base.dtype or tuned.dtype not in _TYPES:
        return None
    if not all(
        each.device.type == "cpu"
        and each.is_contiguous()
        and each.data_ptr() % each.element_size() == 0
        for each in (tuned, base)
    ):
        return None
    return Passes(library, tuned, base)


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(_FOLDER / "passes.so"))
        library.passes_source.restype = ctypes.c_char_p
        digest = hashlib.sha256((_FOLDER / "passes.c").read_bytes()).hexdigest()
        if library.passes_source() != digest.encode():
            raise OSError("passes.so was compiled from another passes.c")
        for name, arguments in _ARGUMENTS.items():
            for dtype in _TYPES.values():
                function = getattr(library, f"{name}_{dtype}")
                function.argtypes = [_POINTER, _POINTER, _LENGTH, *arguments]
                function.restype = _LENGTH if name in _COUNTING else None
        library.hashes.argtypes = [_POINTER, _POINTER, _LENGTH, _KEY, _LENGTH, _POINTER]
        library.hashes.restype = _LENGTH
    except (OSError, AttributeError) as error:
        LOG.info("No compiled passes, PyTorch does their work: %s.", error)
        return None
    return library


_COUNTING = ("sums", "look")
"""Passes that return how many elements they found."""

_ARGUMENTS = {
    "sums": [_FLOAT, _POINTER, _POINTER, _POINTER],
    "tails": [_LENGTH, _POINTER, _POINTER, _POINTER],
    "look": [_LENGTH, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER],
    "place": [_POINTER, _LENGTH, _FLOAT, _FLOAT, _FLOAT, _POINTER],
    "add": [_LENGTH, _LENGTH, _POINTER, _POINTER, _POINTER, _FLOAT, _POINTER],
}
