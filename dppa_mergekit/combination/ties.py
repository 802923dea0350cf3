"""TIES sign consensus: of every element, only the deltas that agree with the sign of their sum.

As in mergekit's `ties` (mergekit/merge_methods/generalized_task_arithmetic.py, release 0.1.5;
method of arXiv 2306.01708).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from dppa_mergekit.combination.elementwise import Combine, ElementwiseCombination
from dppa_mergekit.deltas.delta import Buffer, buffers
from dppa_mergekit.sparsification.pruning import PrunedChunks


@dataclass(frozen=True)
class TiesConsensus(ElementwiseCombination):
    """The sum of the weighted deltas that agree in sign, over the weights of those that agree."""

    compiled: ClassVar[Literal["sum", "consensus"] | None] = "consensus"

    def divisor(self, weights: Sequence[float], dtype: torch.dtype) -> float | None:
        """Not None if normalized; `combine` divides by the weights of the deltas that agree."""
        return float(torch.tensor(weights, dtype=dtype).sum()) if self.normalize else None

    def combine(self, weights: Sequence[float], divisor: float | None) -> Combine:
        """Elect the sign of every element, then add the deltas that have it."""
        held: list[Buffer] = []

        def combine(
            total: torch.Tensor, deltas: Sequence[PrunedChunks], start: int, stop: int
        ) -> None:
            if not held:
                held.extend(buffers(len(weights) + 2, total.dtype, total.device))
            sign, taking, *weighted = (buffer.of(stop - start) for buffer in held)
            for values, delta, weight in zip(weighted, deltas, weights, strict=True):
                delta.add_to(values.zero_(), weight, start, stop)
                total.add_(values)
            # The sign of the sum, and plus where the sum is zero, negative zero included.
            torch.copysign(sign.fill_(1.0), total.add_(0.0), out=sign)
            total.zero_()
            taking.zero_()
            for values, weight in zip(weighted, weights, strict=True):
                # A delta that agrees is positive once it is multiplied by the elected sign.
                total.add_(values.mul_(sign).clamp_(min=0))
                if divisor is not None:
                    taking.add_(values.sign_().mul_(weight))
            total.mul_(sign)
            if divisor is not None:
                # Where the weights that agree sum to zero, divide by 1, as mergekit does.
                total.div_(taking.add_(torch.eq(taking, 0, out=sign)))

        return combine
