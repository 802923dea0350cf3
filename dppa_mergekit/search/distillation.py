"""Factors by distillation: the fine-tuned model teaches its pruned self.

The divergence to the teacher is smooth in the factors, and one backward pass gives its derivative
in all of them: a few dozen steps take the place of as many evaluations.
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
class Descent:
    """Steps of Adam on the factors.

    Attributes:
        steps: How many.
        batch_size: Lessons for each.
        learning_rate: How far a factor moves in a step, at most.
        averaged: Share of the steps, the last ones, whose factors are averaged.
        seed: Of the order of the lessons.
    """

    steps: int = 40
    batch_size: int = 16
    learning_rate: float = 0.05
    averaged: float = 0.25
    seed: int = 0


def distill(
    resident: AmplifiedModel,
    lessons: Lessons,
    low: float,
    high: float,
    descent: Descent,
    per_block: bool = False,
) -> dict[int, list[float]]:
    """Rate -> factor, or factors from the first layer to the last, by descent from factors 1.

    Args:
        resident: The pruned model; its factors are changed.
        lessons: Of its teacher.
        low: The least factor.
        high: The largest.
        descent: How to descend.
        per_block: Whether every layer has factors of its own.
    """
    factors = torch.ones(
        len(resident.rates), resident.layers if per_block else 1, dtype=torch.float64
    )
    optimizer = torch.optim.Adam([factors], lr=descent.learning_rate)
    total = torch.zeros_like(factors)
    last = max(1, round(descent.steps * descent.averaged))
    drawn = draw_batches(lessons.number, descent.batch_size, descent.seed)
    with resident.factor_gradients() as gradients:
        for step in range(descent.steps):
            resident.set_factors(dict(zip(resident.rates, factors.tolist(), strict=True)))
            gradients.zero_()
            with torch.enable_grad():
                loss = divergence(resident.model, lessons.some(next(drawn)))
                torch.autograd.backward(loss)
            factors.grad = gradients.clone() if per_block else gradients.sum(1, keepdim=True)
            optimizer.step()
            factors.clamp_(low, high)
            if step >= descent.steps - last:
                total += factors
    return dict(zip(resident.rates, (total / last).tolist(), strict=True))
