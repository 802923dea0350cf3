"""Combination: base plus the weighted sum of the pruned, amplified deltas (paper 3.4, eq. 6).

    merged = base + lambda * sum_k weight_k * amplified_pruned_delta_k

accumulated in float32 (float64 for float64 models) and cast once to the output's dtype. With TIES
consensus, of every element only the deltas whose sign agrees with that of their sum take part, as
in mergekit's `ties` (mergekit/merge_methods/generalized_task_arithmetic.py, release 0.1.5). At
density 1 and factor 1 the operations and their order are those of mergekit's `task_arithmetic`
and `ties`, so that on float32 checkpoints the results are equal bit for bit.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from dppa_mergekit.deltas import Buffer, chunks, delta_chunks
from dppa_mergekit.sparsification import Part, Pruned, PrunedChunks, Scratch
from dppa_mergekit.threads import share


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
        deltas = [each.pruned.pruning.delta for each in contributions]
        dtype, device = deltas[0].dtype, deltas[0].device
        weights = torch.tensor([each.weight for each in contributions], dtype=dtype).tolist()

        def work(places: Iterator[tuple[int, tuple[int, int]]]) -> bool:
            readers, origin = delta_chunks(deltas)
            scratch = Scratch(dtype, device)
            pruned = [
                PrunedChunks(each.pruned, reader, scratch)
                for each, reader in zip(contributions, readers, strict=True)
            ]
            combine = (_consensus if self.consensus else _weighted_sum)(weights, self.normalize)
            buffer = Buffer(dtype, device)
            overflow = False
            for position, (start, stop) in places:
                total = buffer.of(stop - start).zero_()
                combine(
                    total,
                    (
                        Part(part.index, part.values.mul_(weight))
                        for part, weight in zip(
                            (each.read(position, start, stop) for each in pruned),
                            weights,
                            strict=True,
                        )
                    ),
                )
                if self.lambda_ != 1:
                    total.mul_(self.lambda_)
                total.add_(base[start:stop] if origin is None else origin.read(start, stop))
                low, high = torch.aminmax(total)
                overflow = overflow or not (-limit <= float(low) and float(high) <= limit)
                merged[start:stop] = total
            return overflow

        return any(share(work, list(enumerate(chunks(base.numel(), device))), device))


Combine = Callable[[torch.Tensor, Iterator[Part]], None]
"""Writes the combination of weighted parts, each overwritten by the next, to a chunk of zeros."""


def _weighted_sum(weights: Sequence[float], normalize: bool) -> Combine:
    def combine(total: torch.Tensor, weighted: Iterator[Part]) -> None:
        for part in weighted:
            part.add_to(total)
        if normalize:
            divisor = float(torch.tensor(weights, dtype=total.dtype).sum())
            if abs(divisor) >= 1e-8:
                total.div_(divisor)

    return combine


def _consensus(weights: Sequence[float], normalize: bool) -> Combine:
    def combine(total: torch.Tensor, weighted: Iterator[Part]) -> None:
        parts = []
        for part in weighted:
            part.add_to(total)
            parts.append(Part(part.index, part.values.clone()))
        # The sign of the sum, and plus where the sum is zero, negative zero included.
        sign = torch.ones_like(total).copysign_(total.add_(0.0))
        total.zero_()
        taking = torch.zeros_like(total)
        for part, weight in zip(parts, weights, strict=True):
            here = sign if part.index is None else sign.index_select(0, part.index)
            # What agrees is positive once it is multiplied by the majority's sign.
            agreeing = part.values.mul_(here).clamp_(min=0)
            Part(part.index, agreeing).add_to(total)
            if normalize:
                Part(part.index, agreeing.sign_().mul_(weight)).add_to(taking)
        total.mul_(sign)
        if normalize:
            # Where none takes part, the sum is zero already.
            total.div_(taking.add_(torch.eq(taking, 0, out=sign)))

    return combine
