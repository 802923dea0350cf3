"""Combination: base plus the weighted sum of the pruned, amplified deltas (paper 3.4, eq. 6).

    merged = base + lambda * sum_k weight_k * amplified_pruned_delta_k

accumulated in float32 (float64 for float64 models) and cast once to the output's dtype. With TIES
consensus, of every element only the deltas whose sign agrees with that of their sum take part, as
in mergekit's `ties` (mergekit/merge_methods/generalized_task_arithmetic.py, release 0.1.5). At
density 1 and factor 1 the operations and their order are those of mergekit's `task_arithmetic`
and `ties`, so that on float32 checkpoints the results are equal bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dppa_mergekit.deltas import Delta
from dppa_mergekit.sparsification import Scaling


@dataclass(frozen=True)
class Contribution:
    """What one model adds to one linear, or to one dense tensor."""

    delta: Delta
    scaling: Scaling
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
        dtype = contributions[0].delta.dtype
        weights = torch.tensor(
            [each.weight for each in contributions], dtype=dtype, device=base.device
        )
        combine = _consensus(self.normalize) if self.consensus else _weighted_sum(self.normalize)
        overflow = False
        for parts in zip(*(each.delta.chunks() for each in contributions), strict=True):
            offset = parts[0][0]
            for each, (_, values) in zip(contributions, parts, strict=True):
                each.scaling.apply_(offset, values).mul_(each.weight)
            mixed = combine([values for _, values in parts], weights)
            if self.lambda_ != 1:
                mixed.mul_(self.lambda_)
            stop = offset + mixed.numel()
            mixed.add_(base[offset:stop])
            low, high = torch.aminmax(mixed)
            overflow = overflow or not (-limit <= float(low) and float(high) <= limit)
            merged[offset:stop] = mixed
        return overflow


Combine = Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]


def _weighted_sum(normalize: bool) -> Combine:
    def combine(weighted: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        total = weighted[0]
        for values in weighted[1:]:
            total.add_(values)
        if normalize:
            divisor = weights.sum()
            if divisor.abs() >= 1e-8:
                total.div_(divisor)
        return total

    return combine


def _consensus(normalize: bool) -> Combine:
    def combine(weighted: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        stacked = torch.stack(weighted)
        majority = torch.where(stacked.sum(dim=0) >= 0, 1.0, -1.0)
        agrees = stacked.sign() == majority
        total = (stacked * agrees).sum(dim=0)
        if normalize:
            divisor = (weights[:, None] * agrees).sum(dim=0)
            total.div_(divisor.masked_fill_(divisor == 0, 1))
        return total

    return combine
