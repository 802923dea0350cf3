"""The weighted sum of the pruned, amplified deltas (paper 3.4, eq. 6).

merged = base + lambda * sum_k weight_k * amplified_pruned_delta_k
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal, TypeAlias

import torch

from dppa_mergekit.combination.contribution import Contribution, Derivatives
from dppa_mergekit.combination.elementwise import Combine, ElementwiseCombination
from dppa_mergekit.deltas.delta import Buffer, buffers
from dppa_mergekit.deltas.kernel import CombinePass
from dppa_mergekit.deltas.threads import in_order, share
from dppa_mergekit.sparsification.pruning import Pruned, PrunedChunks, amplify, open_chunks

Products: TypeAlias = Callable[[int, int, torch.Tensor], list[float]]
"""Given the chunk [start, stop) of a gradient, returns its product with the delta of each model."""


@dataclass(frozen=True)
class WeightedSum(ElementwiseCombination):
    """lambda times the sum of weight times delta, over the sum of the weights if normalized."""

    compiled: ClassVar[Literal["sum", "consensus"] | None] = "sum"

    def divisor(self, weights: Sequence[float], dtype: torch.dtype) -> float | None:
        """The sum of the weights, unless it is as good as zero."""
        if not self.normalize:
            return None
        total = float(torch.tensor(weights, dtype=dtype).sum())
        return total if abs(total) >= 1e-8 else None

    def combine(self, weights: Sequence[float], divisor: float | None) -> Combine:
        """Add delta after delta, in the order of the recipe."""

        def combine(
            total: torch.Tensor, deltas: Sequence[PrunedChunks], start: int, stop: int
        ) -> None:
            for delta, weight in zip(deltas, weights, strict=True):
                delta.add_to(total, weight, start, stop)
            if divisor is not None:
                total.div_(divisor)

        return combine

    def weight_gradients(
        self, contributions: Sequence[Contribution], of_merged: torch.Tensor
    ) -> list[float]:
        """The derivatives of a loss in the weights: <dL/dW, amplified pruned delta>.

        Args:
            contributions: In the order of the recipe, of numel elements each.
            of_merged: (numel,) derivative of the loss in the merged elements; on any device.
        """
        found = _multiply([contribution.pruned for contribution in contributions], of_merged)
        return self._of_weights(contributions, found)

    def derivatives(
        self, contributions: Sequence[Contribution], of_merged: torch.Tensor
    ) -> list[Derivatives]:
        """The derivatives of a loss in the weights, and in the factors of all partitions.

        A factor's is the weight times <dL/dW, partition of the delta>. The arguments are those of
        `weight_gradients`; tensors are linears in all models, or dense in all of them.
        """
        partitions = [contribution.pruned.partitions() for contribution in contributions]
        if not all(partitions):
            of_weights = self.weight_gradients(contributions, of_merged)
            return [Derivatives(of_weight, ()) for of_weight in of_weights]
        products = iter(_multiply([one for parts in partitions for one in parts], of_merged))
        of_models = [list(islice(products, len(parts))) for parts in partitions]
        whole = [
            math.fsum(f * x for f, x in zip(one.pruned.pruning.factors, found, strict=True))
            for one, found in zip(contributions, of_models, strict=True)
        ]
        of_weights = self._of_weights(contributions, whole)
        scale = self.lambda_ / (self._divisor_of(contributions) or 1.0)
        return [
            Derivatives(of_weight, [scale * one.weight * product for product in found])
            for one, of_weight, found in zip(contributions, of_weights, of_models, strict=True)
        ]

    def _divisor_of(self, contributions: Sequence[Contribution]) -> float | None:
        """The divisor of the sum of contributions; None for no division."""
        weights = [contribution.weight for contribution in contributions]
        return self.divisor(weights, contributions[0].pruned.pruning.delta.dtype)

    def _of_weights(
        self, contributions: Sequence[Contribution], products: Sequence[float]
    ) -> list[float]:
        """The derivatives in the weights, given <dL/dW, delta> of every contribution."""
        found = [self.lambda_ * product for product in products]
        divisor = self._divisor_of(contributions)
        if divisor is None:
            return found
        weights = [contribution.weight for contribution in contributions]
        mean = math.fsum(w * x for w, x in zip(weights, found, strict=True)) / divisor
        return [(value - mean) / divisor for value in found]


def _multiply(pruned: Sequence[Pruned], of_merged: torch.Tensor) -> list[float]:
    """The scalar products of a gradient, (numel,), with amplified, pruned deltas of one base."""
    delta = pruned[0].pruning.delta
    gradient = of_merged.to(delta.device)
    products = _compiled_products(pruned) or _products_by_torch(pruned)

    def work(spans: Iterator[tuple[int, int]]) -> list[tuple[int, list[float]]]:
        of_chunk, buffer = products(), Buffer(delta.dtype, delta.device)
        return [
            (
                start,
                of_chunk(start, stop, buffer.of(stop - start).copy_(gradient[start:stop])),
            )
            for start, stop in spans
        ]

    # Summed in one order, whatever thread took which chunk.
    of_chunks = in_order(share(work, delta.chunks(), delta.device, summing=True))
    return [math.fsum(values) for values in zip(*of_chunks, strict=True)]


def _compiled_products(pruned: Sequence[Pruned]) -> Callable[[], Products] | None:
    models = amplify(pruned, [1.0] * len(pruned))
    if models is None:
        return None
    return lambda: CombinePass(models, False, None, 1.0, math.inf).products


def _products_by_torch(pruned: Sequence[Pruned]) -> Callable[[], Products]:
    delta = pruned[0].pruning.delta
    open_writer = open_chunks(pruned, [1.0] * len(pruned))

    def compute() -> Products:
        write, own = open_writer(), buffers(len(pruned), delta.dtype, delta.device)

        def products(start: int, stop: int, gradient: torch.Tensor) -> list[float]:
            values = [buffer.of(stop - start) for buffer in own]
            write(start, stop, values)
            return [float(torch.dot(of_model, gradient)) for of_model in values]

        return products

    return compute
