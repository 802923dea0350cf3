"""Combination: base plus the weighted sum of the pruned, amplified deltas (paper 3.4, eq. 6).

    merged = base + lambda * sum_k weight_k * amplified_pruned_delta_k

accumulated in float32 (float64 for float64 models) and cast once to the output's dtype. With TIES
consensus, of every element only the deltas whose sign agrees with that of their sum take part, as
in mergekit's `ties` (mergekit/merge_methods/generalized_task_arithmetic.py, release 0.1.5). At
density 1 and factor 1 the operations and their order are those of mergekit's `task_arithmetic`
and `ties`, so that on float32 checkpoints the results are equal bit for bit.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from dppa_mergekit.deltas.delta import Buffer, buffers, chunks, delta_chunks
from dppa_mergekit.deltas.kernel import AmplifiedDelta, CombinePass
from dppa_mergekit.deltas.threads import in_order, share
from dppa_mergekit.sparsification.amplification import Pruned, PrunedChunks

Chunk: TypeAlias = Callable[[int, int, torch.Tensor], bool]
"""Writes the merged chunk [start, stop); returns whether a sum is larger than the limit."""

Products: TypeAlias = Callable[[int, int, torch.Tensor], list[float]]
"""Of the chunk [start, stop): for every model the product of its delta with a gradient."""


@dataclass(frozen=True)
class Contribution:
    """What one model adds to one linear, or to one dense tensor."""

    pruned: Pruned
    weight: float


@dataclass(frozen=True)
class Combination:
    """How the contributions become one.

    Attributes:
        consensus: TIES sign consensus.
        normalize: Divide by the sum of the weights (under consensus, of those that take part).
        lambda_: Factor of the combined delta.
    """

    consensus: bool = False
    normalize: bool = False
    lambda_: float = 1.0

    def merge(
        self,
        base: torch.Tensor,
        contributions: Sequence[Contribution],
        merged: torch.Tensor,
        limit: float,
    ) -> bool:
        """Write base plus the combined contributions, chunk by chunk.

        Args:
            base: (numel,) borrowed.
            contributions: At least one, in the order of the recipe; of numel elements each.
            merged: (numel,) written to, cast once.
            limit: The largest magnitude that the output's dtype holds.

        Returns:
            Whether a sum was larger than the limit.
        """
        delta = contributions[0].pruned.pruning.delta
        compute = self._compiled(contributions, limit) or self._by_torch(contributions, base, limit)

        def work(places: Iterator[tuple[int, int]]) -> bool:
            chunk, buffer = compute(), Buffer(delta.dtype, delta.device)
            overflow = False
            for start, stop in places:
                total = buffer.of(stop - start)
                overflow = chunk(start, stop, total) or overflow
                merged[start:stop] = total
            return overflow

        return any(share(work, chunks(base.numel(), delta.device), delta.device))

    def _compiled(
        self, contributions: Sequence[Contribution], limit: float
    ) -> Callable[[], Chunk] | None:
        """The compiled pass, if there is one for all of the deltas."""
        models = _compiled_models(contributions)
        if models is None:
            return None
        divisor = self._divisor([each.weight for each in contributions], torch.float32)
        return lambda: CombinePass(models, self.consensus, divisor, self.lambda_, limit)

    def _by_torch(
        self, contributions: Sequence[Contribution], base: torch.Tensor, limit: float
    ) -> Callable[[], Chunk]:
        deltas = [each.pruned.pruning.delta for each in contributions]
        dtype, device = deltas[0].dtype, deltas[0].device
        weights = torch.tensor([each.weight for each in contributions], dtype=dtype).tolist()
        divisor = self._divisor(weights, dtype)

        def compute() -> Chunk:
            readers, origin = delta_chunks(deltas)
            kept = buffers(3, dtype, device)
            pruned = [
                PrunedChunks(each.pruned, reader, kept)
                for each, reader in zip(contributions, readers, strict=True)
            ]
            combine = (_consensus if self.consensus else _weighted_sum)(weights, divisor)

            def chunk(start: int, stop: int, total: torch.Tensor) -> bool:
                combine(total.zero_(), pruned, start, stop)
                if self.lambda_ != 1:
                    total.mul_(self.lambda_)
                total.add_(base[start:stop] if origin is None else origin.read(start, stop))
                low, high = torch.aminmax(total)
                return not (-limit <= float(low) and float(high) <= limit)

            return chunk

        return compute

    def weight_gradients(
        self, contributions: Sequence[Contribution], of_merged: torch.Tensor
    ) -> list[float]:
        """The derivatives of a loss in the weights, of a weighted sum.

        Args:
            contributions: In the order of the recipe; of numel elements each.
            of_merged: (numel,) the loss's derivative in the merged elements; on any device.

        Raises:
            ValueError: Under TIES consensus, which weights do not move smoothly.
        """
        if self.consensus:
            raise ValueError("TIES consensus has no derivative in the weights")
        delta = contributions[0].pruned.pruning.delta
        gradient = of_merged.to(delta.device)
        plain = [replace(each, weight=1.0) for each in contributions]
        products = self._compiled_products(plain) or self._products_by_torch(plain)

        def work(places: Iterator[tuple[int, int]]) -> list[tuple[int, list[float]]]:
            of_chunk, buffer = products(), Buffer(delta.dtype, delta.device)
            return [
                (
                    start,
                    of_chunk(start, stop, buffer.of(stop - start).copy_(gradient[start:stop])),
                )
                for start, stop in places
            ]

        # In one order, whatever thread took which chunk.
        of_chunks = in_order(share(work, delta.chunks(), delta.device))
        found = [self.lambda_ * math.fsum(each) for each in zip(*of_chunks, strict=True)]
        weights = [each.weight for each in contributions]
        divisor = self._divisor(weights, delta.dtype)
        if divisor is None:
            return found
        mean = math.fsum(w * x for w, x in zip(weights, found, strict=True)) / divisor
        return [(each - mean) / divisor for each in found]

    def _compiled_products(
        self, contributions: Sequence[Contribution]
    ) -> Callable[[], Products] | None:
        models = _compiled_models(contributions)
        if models is None:
            return None
        return lambda: CombinePass(models, False, None, 1.0, math.inf).products

    def _products_by_torch(self, contributions: Sequence[Contribution]) -> Callable[[], Products]:
        deltas = [each.pruned.pruning.delta for each in contributions]
        dtype, device = deltas[0].dtype, deltas[0].device

        def compute() -> Products:
            readers, _ = delta_chunks(deltas)
            kept, buffer = buffers(3, dtype, device), Buffer(dtype, device)
            pruned = [
                PrunedChunks(each.pruned, reader, kept)
                for each, reader in zip(contributions, readers, strict=True)
            ]

            def products(start: int, stop: int, gradient: torch.Tensor) -> list[float]:
                found = []
                for each in pruned:
                    values = buffer.of(stop - start).zero_()
                    each.add_to(values, 1.0, start, stop)
                    found.append(float(torch.dot(values, gradient)))
                return found

            return products

        return compute

    def _divisor(self, weights: Sequence[float], dtype: torch.dtype) -> float | None:
        """The sum of the weights, in a dtype; None if nothing is to be divided by it."""
        if not self.normalize:
            return None
        total = float(torch.tensor(weights, dtype=dtype).sum())
        return total if self.consensus or abs(total) >= 1e-8 else None


def _compiled_models(contributions: Sequence[Contribution]) -> list[AmplifiedDelta] | None:
    """What the compiled passes take, if there are some for all of the deltas."""
    amplified = [each.pruned.amplified(each.weight) for each in contributions]
    models = [each for each in amplified if each is not None]
    if len(models) < len(amplified) or len({each.passes.base.dtype for each in models}) > 1:
        return None
    return models


@dataclass(frozen=True)
class Combined:
    """What became one linear, or one dense tensor, of a merge.

    Attributes:
        name: The tensor's name.
        part: Where in the flat tensor the linear is: one of several, if it holds stacked experts.
        combination: How the contributions became one.
        contributions: By the name of the model.
        dtypes: What the result is cast to, one after the other.
    """

    name: str
    part: slice
    combination: Combination
    contributions: Mapping[str, Contribution]
    dtypes: Sequence[torch.dtype]


Listener: TypeAlias = Callable[[Combined], None]
"""Is told of everything that is combined; tensors are borrowed, and not to be changed."""

Combine = Callable[[torch.Tensor, Sequence[PrunedChunks], int, int], None]
"""Writes the combination of the deltas' chunk [start, stop) to a chunk of zeros."""


def _weighted_sum(weights: Sequence[float], divisor: float | None) -> Combine:
    def combine(total: torch.Tensor, deltas: Sequence[PrunedChunks], start: int, stop: int) -> None:
        for delta, weight in zip(deltas, weights, strict=True):
            delta.add_to(total, weight, start, stop)
        if divisor is not None:
            total.div_(divisor)

    return combine


def _consensus(weights: Sequence[float], divisor: float | None) -> Combine:
    held: list[Buffer] = []

    def combine(total: torch.Tensor, deltas: Sequence[PrunedChunks], start: int, stop: int) -> None:
        if not held:
            held.extend(buffers(len(weights) + 2, total.dtype, total.device))
        sign, taking, *weighted = (each.of(stop - start) for each in held)
        for values, delta, weight in zip(weighted, deltas, weights, strict=True):
            delta.add_to(values.zero_(), weight, start, stop)
            total.add_(values)
        # The sign of the sum, and plus where the sum is zero, negative zero included.
        torch.copysign(sign.fill_(1.0), total.add_(0.0), out=sign)
        total.zero_()
        taking.zero_()
        for values, weight in zip(weighted, weights, strict=True):
            # What agrees is positive once it is multiplied by the majority's sign.
            total.add_(values.mul_(sign).clamp_(min=0))
            if divisor is not None:
                taking.add_(values.sign_().mul_(weight))
        total.mul_(sign)
        if divisor is not None:
            # Where none takes part, the sum is zero already.
            total.div_(taking.add_(torch.eq(taking, 0, out=sign)))

    return combine
