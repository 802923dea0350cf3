"""The compiled passes over the deltas of several models at once."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch

from dppa_mergekit.deltas.kernel import library
from dppa_mergekit.deltas.kernel.delta_passes import DeltaPasses
from dppa_mergekit.deltas.kernel.library import BLOCK, FLOAT, INT32, INT64, POINTER, UINT32
from dppa_mergekit.deltas.keys import Cut
from dppa_mergekit.deltas.tie_order import MASK32


@dataclass(frozen=True)
class AmplifiedDelta:
    """A model's delta, with its kept sets and what multiplies them.

    Attributes:
        passes: The passes over the delta.
        cuts: Nested kept sets, the smallest first.
        factors: (cuts,) each multiplies the elements of its set that are in no smaller set.
        weight: Multiplies the amplified delta.
        divisor: Divides the delta before it is amplified.
        words: Select the random keys of the elements; None if keys are those of the magnitudes.
    """

    passes: DeltaPasses
    cuts: Sequence[Cut]
    factors: Sequence[float]
    weight: float
    divisor: float = 1.0
    words: tuple[int, int] | None = None

    def cuts_of_int32(self) -> list[Cut]:
        """Return the cuts as the library compares keys: those of 32 bits are less 2^31."""
        if self.words is None:
            return list(self.cuts)
        # No key is below 0: what is above -1 is 0, whatever its hash, or above 0.
        above_zero = [Cut(0, MASK32) if cut.above < 0 else cut for cut in self.cuts]
        return [Cut(cut.above - 2**31, cut.last) for cut in above_zero]


class _AmplifiedDelta(ctypes.Structure):
    """`struct amplified_delta` of passes.c."""

    _fields_ = (
        ("fine_tuned", POINTER),
        ("above", POINTER),
        ("last", POINTER),
        ("factor", POINTER),
        ("cuts", INT64),
        ("weight", FLOAT),
        ("divisor", FLOAT),
        ("random", INT32),
        ("words", UINT32 * 2),
    )


class _Combination(ctypes.Structure):
    """`struct combination` of passes.c."""

    _fields_ = (
        ("model", POINTER),
        ("models", INT64),
        ("consensus", INT32),
        ("normalize", INT32),
        ("divisor", FLOAT),
        ("lambda", FLOAT),
        ("limit", FLOAT),
    )


class CombinePass:
    """The passes over several deltas of one base and dtype; for one thread."""

    def __init__(
        self,
        models: Sequence[AmplifiedDelta],
        consensus: bool,
        divisor: float | None,
        lambda_: float,
        limit: float,
    ) -> None:
        """Prepare the passes.

        Args:
            models: At least one.
            consensus: Whether to apply TIES sign consensus.
            divisor: Divides the sum of the deltas; None for no division. Under consensus its value
                does not matter: each element is divided by the sum of the weights of the models
                that take part in it.
            lambda_: Multiplies the combined delta.
            limit: The largest magnitude that a result may have.
        """
        first = models[0].passes
        self._models = models
        self._base = first.base
        self._combine = library.function_of_dtype(first.compiled, "combine", first.base.dtype)
        self._amplify = library.function_of_dtype(first.compiled, "amplify", first.base.dtype)
        self._products = library.function_of_dtype(first.compiled, "products", first.base.dtype)
        # The library gets addresses only: the arrays must live as long as this object.
        cuts = [model.cuts_of_int32() for model in models]
        self._above = [numpy.array([cut.above for cut in own], numpy.int32) for own in cuts]
        self._last = [numpy.array([cut.last for cut in own], numpy.int64) for own in cuts]
        self._factors = [numpy.array(model.factors, numpy.float32) for model in models]
        self._weighted = numpy.empty((len(models), BLOCK), numpy.float32)
        self._amplified = (_AmplifiedDelta * len(models))(
            *(
                _AmplifiedDelta(
                    model.passes.fine_tuned.data_ptr(),
                    above.ctypes.data,
                    last.ctypes.data,
                    factors.ctypes.data,
                    len(above),
                    model.weight,
                    model.divisor,
                    model.words is not None,
                    (UINT32 * 2)(*(model.words or (0, 0))),
                )
                for model, above, last, factors in zip(
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
        """Write base plus combined deltas of one chunk.

        Args:
            start: Where the chunk begins.
            stop: Where it ends.
            total: (stop - start,) float32, contiguous; overwritten.

        Returns:
            Whether a result is larger in magnitude than the limit, or NaN.
        """
        beyond: int = self._combine(
            self._base.data_ptr(),
            start,
            stop,
            ctypes.byref(self._combination),
            self._weighted.ctypes.data,
            total.data_ptr(),
        )
        return beyond > 0

    def amplify(self, start: int, stop: int, deltas: Sequence[torch.Tensor]) -> None:
        """Write one chunk of each model's weighted delta.

        Args:
            start: Where the chunk begins.
            stop: Where it ends.
            deltas: Of each model, (stop - start,) float32, contiguous; overwritten.
        """
        addresses = (POINTER * len(deltas))(*(delta.data_ptr() for delta in deltas))
        self._amplify(
            self._base.data_ptr(), start, stop, ctypes.byref(self._combination), addresses
        )

    def products(self, start: int, stop: int, gradient: torch.Tensor) -> list[float]:
        """Return, for each model, the scalar product of its weighted delta with a gradient.

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
        products: list[float] = lanes.sum(1, dtype=numpy.float64).tolist()
        return products
