"""Scores of models on tasks, and the paper's two ratios with their standard errors.

    Task-Ratio   (eq. 7) = score of the pruned or merged model / score of the fine-tuned model
    Domain-Ratio (eq. 8) = geometric mean of the Task-Ratios of a domain's tasks, in percent

`task_ratio` is eq. 7 and `domain_ratio` is eq. 8. Two models are compared item by item on the same
items, so that the difficulty of an item, which both models share, does not count as noise. The
scores of the fine-tuned models count as known exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy
from numpy.typing import NDArray

from dppa_mergekit.report.markdown_tables import with_error

Floats: TypeAlias = NDArray[numpy.float64]

LEAST_SCORE = 1e-9
"""Stands in for a score of 0 without items, where a logarithm is needed."""


@dataclass(frozen=True)
class Score:
    """The score of one model on one task.

    Attributes:
        value: The task's metric.
        items: (items,) the metric of each item, whose mean is the value; empty if unknown.
    """

    value: float
    items: tuple[float, ...] = ()

    @classmethod
    def of(cls, items: Sequence[float]) -> Score:
        """Return the mean over items; there must be at least one."""
        return cls(math.fsum(items) / len(items), tuple(items))

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None for fewer than two items."""
        number = len(self.items)
        if number < 2:
            return None
        return float(numpy.std(self.items, ddof=1) / math.sqrt(number))


Items: TypeAlias = Mapping[str, Sequence[int]]
"""Task -> the indices of some of its items; empty if the task is scored as a whole."""

Scores: TypeAlias = Mapping[str, Score]
"""Task -> score."""


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error; the error is None if it is unknown."""

    value: float
    error: float | None = None

    def __str__(self) -> str:
        """Format with one decimal, as in 93.1 ± 1.2."""
        return with_error(self.value, self.error, 1)


def join_scores(parts: Sequence[Scores]) -> Scores:
    """Return the scores over the items of all parts, which score the same tasks."""
    if len(parts) == 1:
        return parts[0]
    return {
        task: Score.of([item for part in parts for item in part[task].items]) for task in parts[0]
    }


def task_ratio(score: Score, fine_tuned_score: float) -> float:
    """Return the Task-Ratio (eq. 7): a score over that of the fine-tuned model.

    Args:
        score: Of the pruned or merged model.
        fine_tuned_score: Of the fine-tuned model on the same task; not 0.
    """
    return score.value / fine_tuned_score


def domain_ratio(scores: Scores, fine_tuned_scores: Mapping[str, float]) -> float:
    """Return the Domain-Ratio (eq. 8): the geometric mean of the Task-Ratios, in percent.

    A negative Task-Ratio counts as 0.

    Args:
        scores: Of the pruned or merged model on the domain's tasks, at least one.
        fine_tuned_scores: Task -> score of the fine-tuned model, above 0.
    """
    ratios = [
        max(0.0, task_ratio(score, fine_tuned_scores[task])) for task, score in scores.items()
    ]
    return 100 * math.prod(ratios) ** (1 / len(ratios))


def estimate_domain_ratio(scores: Scores, fine_tuned_scores: Mapping[str, float]) -> Estimate:
    """Return the Domain-Ratio (eq. 8) with its standard error, by the delta method over items.

    The error is None if a task has fewer than two items.
    """
    influences = _influences(scores, fine_tuned_scores)
    error = None
    if influences is not None:
        error = math.sqrt(sum(_variance_of_sum(influence) for influence in influences))
    return Estimate(domain_ratio(scores, fine_tuned_scores), error)


def smoothed_domain_ratio(scores: Scores, fine_tuned_scores: Mapping[str, float]) -> float:
    """Return the Domain-Ratio after adding one item that is half right to each task.

    A search chooses candidates by it. Without smoothing, a task on which no item is right makes
    every Domain-Ratio 0, whatever the scores of the other tasks.
    """
    logarithms = [
        math.log(_smoothed(score) / fine_tuned_scores[task]) for task, score in scores.items()
    ]
    return 100 * math.exp(math.fsum(logarithms) / len(logarithms))


def ratio_difference(
    left: Scores, right: Scores, fine_tuned_scores: Mapping[str, float]
) -> Estimate:
    """Return the smoothed Domain-Ratio of `left` minus that of `right`.

    The standard error is that of the paired items; None if a task has fewer than two.

    Args:
        left: Scores of one model.
        right: Scores of another model on the same items.
        fine_tuned_scores: Task -> score of the fine-tuned model, above 0.
    """
    value = smoothed_domain_ratio(left, fine_tuned_scores)
    value -= smoothed_domain_ratio(right, fine_tuned_scores)
    of_left, of_right = _influences(left, fine_tuned_scores), _influences(right, fine_tuned_scores)
    if of_left is None or of_right is None:
        return Estimate(value)
    pairs = zip(of_left, of_right, strict=True)
    return Estimate(value, math.sqrt(sum(_variance_of_sum(one - other) for one, other in pairs)))


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean of independent estimates; its error is None if one of theirs is."""
    number = len(estimates)
    errors = [estimate.error for estimate in estimates if estimate.error is not None]
    error = math.hypot(*errors) / number if len(errors) == number else None
    return Estimate(math.fsum(estimate.value for estimate in estimates) / number, error)


def _smoothed(score: Score) -> float:
    number = len(score.items)
    if number == 0:
        return max(LEAST_SCORE, score.value)  # in this order, NaN becomes the least score
    return (max(0.0, score.value) * number + 0.5) / (number + 1)


def _influences(scores: Scores, fine_tuned_scores: Mapping[str, float]) -> list[Floats] | None:
    """Return, for each task, how much each item adds to the smoothed ratio.

    Returns:
        (tasks,) arrays of (items,), counted from an item of value 0; None if a task has fewer than
        two items.
    """
    if any(len(score.items) < 2 for score in scores.values()):
        return None
    ratio = smoothed_domain_ratio(scores, fine_tuned_scores)
    return [
        numpy.asarray(score.items) * (ratio / (len(scores) * len(score.items) * _smoothed(score)))
        for score in scores.values()
    ]


def _variance_of_sum(influence: Floats) -> float:
    """Return the variance of the sum of independent items."""
    return float(numpy.var(influence, ddof=1) * len(influence))
