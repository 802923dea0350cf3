"""Objectives: the numbers by which a search compares candidates, made of Domain-Ratios (eq. 8)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dppa_mergekit.scoring.ratios import (
    Estimate,
    Scores,
    domain_ratio,
    estimate_domain_ratio,
    mean_estimate,
    ratio_difference,
    smoothed_domain_ratio,
)

GUARD_PENALTY = 1e6
"""Weighs the share of a guard's score that is lost beyond the limit: more than any Domain-Ratio."""

DEVIATIONS = 1.5
"""A difference of more standard errors than this is not taken for chance."""


class Objective(Protocol):
    """What candidates are compared by; higher is better."""

    def exact(self, scores: Scores) -> float:
        """Return the value of a candidate."""
        ...

    def smoothed(self, scores: Scores) -> float:
        """Return the value with smoothed Domain-Ratios, by which candidates are chosen."""
        ...

    def estimate(self, scores: Scores) -> Estimate:
        """Return the value that reports show, with its standard error."""
        ...

    def difference(self, left: Scores, right: Scores) -> Estimate:
        """Return the smoothed value of `left` minus that of `right`, scored on the same items."""
        ...

    def shown_difference(self, left: Scores, right: Scores) -> Estimate:
        """Return the difference that reports show: as `difference`, without any penalty."""
        ...

    def lost(self, scores: Scores) -> float:
        """Return the share of guard scores lost beyond the limit; 0 if none is.

        No gain elsewhere makes up for it.
        """
        ...

    def parts(self, scores: Scores) -> Mapping[str, Estimate]:
        """Return the named parts of the estimate, for reports; empty if it has only one."""
        ...

    def is_perfect(self, scores: Scores) -> bool:
        """Return whether every item is right, so that no candidate can be better on these."""
        ...


@dataclass(frozen=True)
class DomainObjective:
    """The Domain-Ratio of one domain.

    Attributes:
        fine_tuned_scores: Task of the domain -> score of its fine-tuned model, above 0.
    """

    fine_tuned_scores: Mapping[str, float]

    def exact(self, scores: Scores) -> float:
        """Return the Domain-Ratio in percent."""
        return domain_ratio(self._of_domain(scores), self.fine_tuned_scores)

    def smoothed(self, scores: Scores) -> float:
        """Return the smoothed Domain-Ratio in percent."""
        return smoothed_domain_ratio(self._of_domain(scores), self.fine_tuned_scores)

    def estimate(self, scores: Scores) -> Estimate:
        """Return the Domain-Ratio in percent with its standard error."""
        return estimate_domain_ratio(self._of_domain(scores), self.fine_tuned_scores)

    def difference(self, left: Scores, right: Scores) -> Estimate:
        """Return the difference of the smoothed Domain-Ratios."""
        return ratio_difference(
            self._of_domain(left), self._of_domain(right), self.fine_tuned_scores
        )

    def shown_difference(self, left: Scores, right: Scores) -> Estimate:
        """Return the difference of the smoothed Domain-Ratios."""
        return self.difference(left, right)

    def lost(self, scores: Scores) -> float:
        """Return 0: a domain has no guard."""
        return 0.0

    def parts(self, scores: Scores) -> Mapping[str, Estimate]:
        """Return no parts."""
        return {}

    def is_perfect(self, scores: Scores) -> bool:
        """Return whether every item of the domain scores 1; not known where items are not."""
        found = self._of_domain(scores).values()
        return all(score.items and set(score.items) == {1.0} for score in found)

    def _of_domain(self, scores: Scores) -> Scores:
        return {task: scores[task] for task in self.fine_tuned_scores}


@dataclass(frozen=True)
class MergeObjective:
    """The mean or the lowest Domain-Ratio of several domains, with a penalty for lost guards.

    Attributes:
        domains: Domain -> its objective.
        worst: Whether the lowest Domain-Ratio counts instead of the mean.
        guard: Guard task -> score of the base model, above 0.
        loss: The share of a guard's score that may be lost, from 0 to 1.
    """

    domains: Mapping[str, DomainObjective]
    worst: bool = False
    guard: Mapping[str, float] = field(default_factory=dict)
    loss: float = 0.0

    def exact(self, scores: Scores) -> float:
        """Return the Domain-Ratio of the merge minus the penalty for lost guards."""
        value = self._mean_or_lowest([domain.exact(scores) for domain in self._objectives])
        return value - GUARD_PENALTY * self.lost(scores)

    def smoothed(self, scores: Scores) -> float:
        """Return the smoothed Domain-Ratio of the merge minus the penalty for lost guards."""
        return self._smoothed_ratio(scores) - GUARD_PENALTY * self.lost(scores)

    def estimate(self, scores: Scores) -> Estimate:
        """Return the Domain-Ratio of the merge with its standard error, without any penalty."""
        estimates = [domain.estimate(scores) for domain in self._objectives]
        if self.worst:
            return min(estimates, key=lambda estimate: estimate.value)
        return mean_estimate(estimates)

    def parts(self, scores: Scores) -> Mapping[str, Estimate]:
        """Return the Domain-Ratios, and under "guard" the ratio of the guards to the base model."""
        found = {name: domain.estimate(scores) for name, domain in self.domains.items()}
        if self.guard:
            found["guard"] = DomainObjective(self.guard).estimate(scores)
        return found

    def is_perfect(self, scores: Scores) -> bool:
        """Return whether every item of all domains is right, and no guard is lost."""
        if self.lost(scores):
            return False
        return all(objective.is_perfect(scores) for objective in self._objectives)

    def difference(self, left: Scores, right: Scores) -> Estimate:
        """Return the difference of the smoothed values; its error is that of the paired items.

        A guard's loss counts only as far as chance does not explain it: on the few items that
        candidates are scored on first, one item may exceed the limit. And a candidate that keeps
        its guards by no more than chance never beats one that keeps more of them.
        """
        lost = self.lost(left, DEVIATIONS) - self.lost(right, DEVIATIONS)
        value = self._smoothed_ratio(left) - self._smoothed_ratio(right) - GUARD_PENALTY * lost
        if self.lost(left, -DEVIATIONS) > self.lost(right, -DEVIATIONS):
            value = min(value, 0.0)
        return Estimate(value, self._error_of_difference(left, right))

    def shown_difference(self, left: Scores, right: Scores) -> Estimate:
        """Return the difference of the smoothed Domain-Ratios, whatever is lost of the guards."""
        value = self._smoothed_ratio(left) - self._smoothed_ratio(right)
        return Estimate(value, self._error_of_difference(left, right))

    def _error_of_difference(self, left: Scores, right: Scores) -> float | None:
        """Return the standard error of the difference of two merges on the same items."""
        differences = [domain.difference(left, right) for domain in self._objectives]
        if not self.worst:
            return mean_estimate(differences).error
        lowest = {self._lowest(scores) for scores in (left, right)}
        errors = [differences[index].error for index in lowest]
        known = [error for error in errors if error is not None]
        return math.hypot(*known) if len(known) == len(errors) else None

    def lost(self, scores: Scores, deviations: float = 0.0) -> float:
        """Return the sum of the shares of guard scores that are lost beyond the limit.

        Args:
            scores: Of the merge.
            deviations: Standard errors by which the limit is relaxed; below 0 it is tightened.
        """
        beyond = []
        for task, of_base in self.guard.items():
            least = of_base * (1 - self.loss) - deviations * (scores[task].error or 0.0)
            beyond.append(max(0.0, least - scores[task].value) / of_base)
        return math.fsum(beyond)

    @property
    def _objectives(self) -> list[DomainObjective]:
        return list(self.domains.values())

    def _mean_or_lowest(self, ratios: Sequence[float]) -> float:
        return min(ratios) if self.worst else math.fsum(ratios) / len(ratios)

    def _smoothed_ratio(self, scores: Scores) -> float:
        return self._mean_or_lowest([domain.smoothed(scores) for domain in self._objectives])

    def _lowest(self, scores: Scores) -> int:
        """Return the index of the domain with the lowest smoothed Domain-Ratio."""
        values = [domain.smoothed(scores) for domain in self._objectives]
        return values.index(min(values))
