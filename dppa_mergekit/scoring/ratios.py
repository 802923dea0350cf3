"""Scores of models on tasks, and what is made of them: the paper's ratios, with their errors.

    Task-Ratio    = score of the pruned or merged model / score of the dense fine-tuned model
    Domain-Ratio  = geometric mean of the Task-Ratios of a domain, in percent   (eqs. 7, 8)

Two models are compared item by item on the same items, so that what makes an item hard for both
does not count as noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy
from numpy.typing import NDArray

from dppa_mergekit.report.markdown_tables import with_error

Floats: TypeAlias = NDArray[numpy.float64]


@dataclass(frozen=True)
class Score:
    """The score of one model on one task.

    Attributes:
        value: The task's metric.
        items: (items,) the metric item by item, whose mean the value is; empty where unknown.
    """

    value: float
    items: tuple[float, ...] = ()

    @classmethod
    def of(cls, items: Sequence[float]) -> Score:
        """The mean over items."""
        return cls(math.fsum(items) / len(items), tuple(items))

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None for fewer than two items."""
        number = len(self.items)
        if number < 2:
            return None
        return float(numpy.std(self.items, ddof=1) / math.sqrt(number))


Items: TypeAlias = Mapping[str, Sequence[int]]
"""Task -> the indices of some of its items; none where it is scored as a whole."""

Scores: TypeAlias = Mapping[str, Score]
"""Task -> score."""


def joined(parts: Sequence[Scores]) -> Scores:
    """The scores over all items of several parts of the same tasks."""
    if len(parts) == 1:
        return parts[0]
    return {task: Score.of([x for part in parts for x in part[task].items]) for task in parts[0]}


def task_ratio(score: Score, dense: float) -> float:
    """Score over the dense model's score, which is not 0."""
    return score.value / dense


def domain_ratio(scores: Scores, dense: Mapping[str, float]) -> float:
    """The Domain-Ratio in percent (eq. 8).

    Args:
        scores: Of the domain's tasks.
        dense: Task -> score of the dense fine-tuned model, above 0.
    """
    ratios = [max(0.0, task_ratio(score, dense[task])) for task, score in scores.items()]
    return 100 * math.prod(ratios) ** (1 / len(ratios))


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error; None where nothing is known of it."""

    value: float
    error: float | None = None

    def __str__(self) -> str:
        """With one digit, as in 93.1 +- 1.2."""
        return with_error(self.value, self.error, 1)


def ratio_estimate(scores: Scores, dense: Mapping[str, float]) -> Estimate:
    """The Domain-Ratio with its standard error: that of the items, by the delta method."""
    influences = _influences(scores, dense)
    error = None if influences is None else math.sqrt(sum(_variance(x) for x in influences))
    return Estimate(domain_ratio(scores, dense), error)


def difference(left: Scores, right: Scores, dense: Mapping[str, float]) -> Estimate:
    """How much better `left` is by its smoothed ratio, with the error of the paired items.

    Args:
        left: On the same items as `right`.
        right: Of another model.
        dense: As for `domain_ratio`.
    """
    value = smoothed_ratio(left, dense) - smoothed_ratio(right, dense)
    of_left, of_right = _influences(left, dense), _influences(right, dense)
    if of_left is None or of_right is None:
        return Estimate(value)
    pairs = zip(of_left, of_right, strict=True)
    return Estimate(value, math.sqrt(sum(_variance(x - y) for x, y in pairs)))


def smoothed_ratio(scores: Scores, dense: Mapping[str, float]) -> float:
    """The Domain-Ratio as candidates are chosen by it: with half an item right beside the others.

    A task on which nothing is right makes every Domain-Ratio 0, whatever the other tasks say.
    """
    logarithms = [math.log(_smoothed(score) / dense[task]) for task, score in scores.items()]
    return 100 * math.exp(math.fsum(logarithms) / len(logarithms))


def _smoothed(score: Score) -> float:
    number = len(score.items)
    if number == 0:
        return max(1e-9, score.value)  # in this order, what is no number is the least
    return (max(0.0, score.value) * number + 0.5) / (number + 1)


def _influences(scores: Scores, dense: Mapping[str, float]) -> list[Floats] | None:
    """Task by task: what each item moves the smoothed ratio by, from where it would be at 0."""
    if any(len(score.items) < 2 for score in scores.values()):
        return None
    ratio = smoothed_ratio(scores, dense)
    return [
        numpy.asarray(score.items) * (ratio / (len(scores) * len(score.items) * _smoothed(score)))
        for score in scores.values()
    ]


def _variance(influence: Floats) -> float:
    """Of the sum of independent items."""
    return float(numpy.var(influence, ddof=1) * len(influence))


class Objective(Protocol):
    """By what candidates are compared: the more, the better."""

    def exact(self, scores: Scores) -> float:
        """What a candidate is worth."""
        ...

    def smoothed(self, scores: Scores) -> float:
        """The same, as candidates are chosen by it."""
        ...

    def estimate(self, scores: Scores) -> Estimate:
        """What people are shown."""
        ...

    def difference(self, left: Scores, right: Scores) -> Estimate:
        """How much more `left` is worth, on the same items."""
        ...

    def lost(self, scores: Scores) -> float:
        """What is lost beyond what is allowed, whatever is gained; 0 where nothing is."""
        ...

    def parts(self, scores: Scores) -> Mapping[str, Estimate]:
        """What the estimate is made of, for people, by name; nothing where it is of one piece."""
        ...


@dataclass(frozen=True)
class DomainObjective:
    """The Domain-Ratio of one domain.

    Attributes:
        dense: Task -> score of the dense fine-tuned model, above 0; of the domain's tasks.
    """

    dense: Mapping[str, float]

    def exact(self, scores: Scores) -> float:
        """The Domain-Ratio."""
        return domain_ratio(self._own(scores), self.dense)

    def smoothed(self, scores: Scores) -> float:
        """The smoothed Domain-Ratio."""
        return smoothed_ratio(self._own(scores), self.dense)

    def estimate(self, scores: Scores) -> Estimate:
        """The Domain-Ratio with its standard error."""
        return ratio_estimate(self._own(scores), self.dense)

    def difference(self, left: Scores, right: Scores) -> Estimate:
        """The difference of the smoothed Domain-Ratios."""
        return difference(self._own(left), self._own(right), self.dense)

    def lost(self, scores: Scores) -> float:
        """Nothing."""
        return 0.0

    def parts(self, scores: Scores) -> Mapping[str, Estimate]:
        """None."""
        return {}

    def _own(self, scores: Scores) -> Scores:
        return {task: scores[task] for task in self.dense}


LOST = 1e6
"""What a share of a guard's score, lost beyond what is allowed, weighs: more than any ratio."""

DEVIATIONS = 1.5
"""By more standard errors than these, a difference is no chance."""


@dataclass(frozen=True)
class MergeObjective:
    """The mean, or the least, of the Domain-Ratios of several domains, unless a guard is lost.

    Attributes:
        domains: Their objectives, by name.
        worst: The least in place of the mean.
        guard: Task -> score of the base model, above 0.
        loss: The share of it that may be lost.
    """

    domains: Mapping[str, DomainObjective]
    worst: bool = False
    guard: Mapping[str, float] = field(default_factory=dict)
    loss: float = 0.0

    def exact(self, scores: Scores) -> float:
        """The Domain-Ratio of the merge, less what the guards lose too much."""
        return self._of([each.exact(scores) for each in self._each]) - LOST * self.lost(scores)

    def smoothed(self, scores: Scores) -> float:
        """The same by smoothed Domain-Ratios."""
        return self._smoothed(scores) - LOST * self.lost(scores)

    def estimate(self, scores: Scores) -> Estimate:
        """The Domain-Ratio of the merge with its standard error."""
        return self._joined([each.estimate(scores) for each in self._each])

    def parts(self, scores: Scores) -> Mapping[str, Estimate]:
        """The Domain-Ratios, and that of the guards to the base model."""
        found = {name: each.estimate(scores) for name, each in self.domains.items()}
        if self.guard:
            found["guard"] = DomainObjective(self.guard).estimate(scores)
        return found

    def difference(self, left: Scores, right: Scores) -> Estimate:
        """The difference of the smoothed values; its error is that of the mean's, paired.

        Of a guard counts what is lost by more than chance explains: of the few items that
        candidates meet on first, one may be more than what is allowed. And who keeps it by no more
        than chance explains beats nobody that keeps more of it.
        """
        each = [domain.difference(left, right) for domain in self._each]
        lost = self.lost(left, DEVIATIONS) - self.lost(right, DEVIATIONS)
        value = self._smoothed(left) - self._smoothed(right) - LOST * lost
        if self.lost(left, -DEVIATIONS) > self.lost(right, -DEVIATIONS):
            value = min(value, 0.0)
        if not self.worst:
            return Estimate(value, self._joined(each).error)
        places = {self._least(scores) for scores in (left, right)}
        errors = [each[place].error for place in places]
        known = [error for error in errors if error is not None]
        return Estimate(value, math.hypot(*known) if len(known) == len(errors) else None)

    @property
    def _each(self) -> list[DomainObjective]:
        return list(self.domains.values())

    def _of(self, ratios: Sequence[float]) -> float:
        return min(ratios) if self.worst else math.fsum(ratios) / len(ratios)

    def _joined(self, estimates: Sequence[Estimate]) -> Estimate:
        if self.worst:
            return min(estimates, key=lambda each: each.value)
        number = len(estimates)
        errors = [each.error for each in estimates if each.error is not None]
        error = math.hypot(*errors) / number if len(errors) == number else None
        return Estimate(math.fsum(each.value for each in estimates) / number, error)

    def _smoothed(self, scores: Scores) -> float:
        return self._of([each.smoothed(scores) for each in self._each])

    def _least(self, scores: Scores) -> int:
        values = [each.smoothed(scores) for each in self._each]
        return values.index(min(values))

    def lost(self, scores: Scores, deviations: float = 0.0) -> float:
        """The shares of guards lost beyond what is allowed, by more than so many errors."""
        beyond = []
        for task, of_base in self.guard.items():
            least = of_base * (1 - self.loss) - deviations * (scores[task].error or 0.0)
            beyond.append(max(0.0, least - scores[task].value) / of_base)
        return math.fsum(beyond)
