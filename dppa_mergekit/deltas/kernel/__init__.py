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

from dppa_mergekit.deltas.delta import Buffer, Delta
from dppa_mergekit.deltas.keys import Cut

LOG = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_POINTER, _LENGTH, _FLOAT, _KEY = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32


BLOCK = 64
"""Elements that the passes compute together, as in passes.c."""


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
        fine_tuned: (numel,) contiguous, on the CPU; kept here, since the passes have its address
            only.
        base: (numel,) likewise, of the same dtype.
    """

    compiled: ctypes.CDLL
    fine_tuned: torch.Tensor
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
            self.compiled, f"{name}_{_TYPES[self.fine_tuned.dtype]}"
        )
        return found

    def _chunk(self, start: int, stop: int) -> tuple[int, int, int]:
        offset = start * self.fine_tuned.element_size()
        return self.fine_tuned.data_ptr() + offset, self.base.data_ptr() + offset, stop - start


def passes_over(delta: Delta) -> Passes | None:
    """The compiled passes, if there are any for this delta."""
    library = _library()
    fine_tuned, base = delta.fine_tuned, delta.base
    if (
        library is None
        or base is None
        or fine_tuned.dtype != base.dtype
        or fine_tuned.dtype not in _TYPES
    ):
        return None
    if not all(
        each.device.type == "cpu"
        and each.is_contiguous()
        and each.data_ptr() % each.element_size() == 0
        for each in (fine_tuned, base)
    ):
        return None
    return Passes(library, fine_tuned, base)


def randoms(index: torch.Tensor, first: int, second: int) -> bool:
    """Write random numbers of 32 bits in the place of indices, if there is a pass for these.

    Args:
        index: (length,) int64.
        first: A word of 32 bits that keys them.
        second: Another.

    Returns:
        Whether it was done.
    """
    library = _library()
    if library is None or index.device.type != "cpu" or not index.is_contiguous():
        return False
    library.randoms(index.data_ptr(), index.numel(), first, second)
    return True


@dataclass(frozen=True)
class Amplified:
    """One of several deltas of one base, and what of it is added.

    Attributes:
        passes: Over the delta.
        cuts: Nested kept sets, the smallest first.
        factors: (cuts,) of the elements that are in this set and in no smaller one.
        weight: Of the amplified delta.
    """

    passes: Passes
    cuts: Sequence[Cut]
    factors: Sequence[float]
    weight: float


class CombinePass:
    """The passes over several deltas of one base and dtype; for one thread."""

    def __init__(
        self,
        models: Sequence[Amplified],
        consensus: bool,
        divisor: float | None,
        lambda_: float,
        limit: float,
    ) -> None:
        """Combine deltas.

        Args:
            models: At least one.
            consensus: TIES sign consensus.
            divisor: What the sum is divided by; under consensus that is the weight of what takes
                part, unless this is None, which is no division.
            lambda_: Factor of the combined delta.
            limit: What no result should exceed.
        """
        first = models[0].passes
        self._models = models
        self._base = first.base
        dtype = _TYPES[first.base.dtype]
        self._pass = getattr(first.compiled, f"combine_{dtype}")
        self._products = getattr(first.compiled, f"products_{dtype}")
        self._above = [
            numpy.array([cut.above for cut in each.cuts], numpy.int32) for each in models
        ]
        self._last = [numpy.array([cut.last for cut in each.cuts], numpy.int64) for each in models]
        self._factors = [numpy.array(each.factors, numpy.float32) for each in models]
        self._weighted = numpy.empty((len(models), BLOCK), numpy.float32)
        self._amplified = (_Amplified * len(models))(
            *(
                _Amplified(
                    each.passes.fine_tuned.data_ptr(),
                    above.ctypes.data,
                    last.ctypes.data,
                    factors.ctypes.data,
                    len(above),
                    each.weight,
                )
                for each, above, last, factors in zip(
                    models, self._above, self._last, self._factors, strict=True
                )
            )
        )
        self._combination = _Combination(
            ctypes.addressof(self._amplified),
            len(models),
            consensus,
            divisor is not None,
            1.0 if divisor is None else divisor,
            lambda_,
            limit,
        )

    def __call__(self, start: int, stop: int, total: torch.Tensor) -> bool:
        """Write a chunk of the base plus the combined deltas.

        Args:
            start: Where the chunk begins.
            stop: Where it ends.
            total: (stop - start,) float32, contiguous; written to.

        Returns:
            Whether a result exceeds the limit.
        """
        beyond: int = self._pass(
            self._base.data_ptr(),
            start,
            stop,
            ctypes.byref(self._combination),
            self._weighted.ctypes.data,
            total.data_ptr(),
        )
        return beyond > 0

    def products(self, start: int, stop: int, gradient: torch.Tensor) -> list[float]:
        """Of a chunk, per model: the scalar product of its weighted delta with a gradient.

        Args:
            start: Where the chunk begins.
            stop: Where it ends.
            gradient: (stop - start,) float32, contiguous.
        """
        lanes = numpy.zeros((len(self._models), BLOCK), numpy.float32)
        self._products(
            self._base.data_ptr(),
            start,
            stop,
            ctypes.byref(self._combination),
            self._weighted.ctypes.data,
            gradient.data_ptr(),
            lanes.ctypes.data,
        )
        found: list[float] = lanes.sum(1, dtype=numpy.float64).tolist()
        return found


class _Amplified(ctypes.Structure):
    """As in passes.c."""

    _fields_ = (
        ("fine_tuned", _POINTER),
        ("above", _POINTER),
        ("last", _POINTER),
        ("factor", _POINTER),
        ("cuts", _LENGTH),
        ("weight", _FLOAT),
    )


class _Combination(ctypes.Structure):
    """As in passes.c."""

    _fields_ = (
        ("model", _POINTER),
        ("models", _LENGTH),
        ("consensus", ctypes.c_int32),
        ("normalize", ctypes.c_int32),
        ("divisor", _FLOAT),
        ("lambda", _FLOAT),
        ("limit", _FLOAT),
    )


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
                function.argtypes = [_POINTER, *arguments]
                function.restype = _LENGTH if name in _COUNTING else None
        library.hashes.argtypes = [_POINTER, _POINTER, _LENGTH, _KEY, _LENGTH, _POINTER]
        library.hashes.restype = _LENGTH
        library.randoms.argtypes = [_POINTER, _LENGTH, ctypes.c_uint32, ctypes.c_uint32]
        library.randoms.restype = None
    except (OSError, AttributeError) as error:
        LOG.info("No compiled passes, PyTorch does their work: %s.", error)
        return None
    return library


_COUNTING = ("sums", "look", "combine")
"""Passes that return how many elements they found."""

_ARGUMENTS = {
    "sums": [_POINTER, _LENGTH, _FLOAT, _POINTER, _POINTER, _POINTER],
    "tails": [_POINTER, _LENGTH, _LENGTH, _POINTER, _POINTER, _POINTER],
    "look": [_POINTER, _LENGTH, _LENGTH, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER],
    "place": [_POINTER, _LENGTH, _POINTER, _LENGTH, _FLOAT, _FLOAT, _FLOAT, _POINTER],
    "combine": [_LENGTH, _LENGTH, _POINTER, _POINTER, _POINTER],
    "products": [_LENGTH, _LENGTH, _POINTER, _POINTER, _POINTER, _POINTER],
}
"""After the address of a tensor."""
