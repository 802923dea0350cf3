"""Factors by distillation: the fine-tuned model teaches its own pruned self.

The divergence from the teacher is smooth in the factors, and one backward pass gives its derivative
in all of them. A few dozen steps replace as many evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dppa_mergekit.adamerging.batches import draw_batches
from dppa_mergekit.adamerging.teacher import divergence

if TYPE_CHECKING:
    from dppa_mergekit.adamerging.teacher import Lessons
    from dppa_mergekit.live.amplified_model import AmplifiedModel


@dataclass(frozen=True)
class FactorDescent:
    """Settings of the descent in the factors, by Adam.

    Attributes:
        steps: Number of steps.
        batch_size: Lessons in a step.
        learning_rate: The farthest that a factor moves in a step.
        averaged: Share of the steps, counted from the end, whose factors are averaged.
        seed: Seed of the order of the lessons.
    """

    steps: int = 40
    batch_size: int = 16
    learning_rate: float = 0.05
    averaged: float = 0.25
    seed: int = 0


def distill(
    amplified: AmplifiedModel,
    lessons: Lessons,
    low: float,
    high: float,
    descent: FactorDescent,
    per_block: bool = False,
) -> dict[int, list[float]]:
    """Descend from factors 1 to those that bring a pruned model nearest to its teacher.

    Args:
        amplified: The pruned model; its factors are changed.
        lessons: Lessons of its teacher.
        low: The least factor.
        high: The largest factor.
        descent: Settings of the descent.
        per_block: Whether every layer has factors of its own.

    Returns:
        Pruning rate -> its factor, as a list of one, or its factors from the first layer to the
        last.
    """
    factors = torch.ones(
        len(amplified.rates), amplified.layers if per_block else 1, dtype=torch.float64
    )
    optimizer = torch.optim.Adam([factors], lr=descent.learning_rate)
    total = torch.zeros_like(factors)
    last = max(1, round(descent.steps * descent.averaged))
    drawn = draw_batches(lessons.number, descent.batch_size, descent.seed)
    with amplified.factor_gradients() as gradients:
        for step in range(descent.steps):
            amplified.set_factors(dict(zip(amplified.rates, factors.tolist(), strict=True)))
            gradients.zero_()
            with torch.enable_grad():
                loss = divergence(amplified.model, lessons.some(next(drawn)))
                torch.autograd.backward(loss)
            factors.grad = gradients.clone() if per_block else gradients.sum(1, keepdim=True)
            optimizer.step()
            factors.clamp_(low, high)
            if step >= descent.steps - last:
                total += factors
    return dict(zip(amplified.rates, (total / last).tolist(), strict=True))
