"""A contest of candidates that are scored item by item: few items first, more for who survives.

Knows neither models nor lm-eval: what scores a candidate is given. Items are dealt out to folds
once. Those of the first folds choose among candidates; those of the last, which chose nothing,
confirm the winner. A candidate that is worse than the leader by more than chance allows, item by
item on the same items, is not scored any further. Nothing is scored twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from dppa_mergekit.scores import (
    Estimate,
    Scores,
    difference,
    domain_ratio,
    joined,
    ratio_estimate,
    smoothed_ratio,
)

Candidate: TypeAlias = tuple[int, ...]
"""Factors in hundredths; 0 is a partition left out."""

ONE = 100
"""A factor of 1."""

FOLDS = 6
"""Into how many parts items are dealt, and so how soon a bad candidate is given up."""

FOLD_ITEMS = 8
"""Fewer items in a fold say nothing."""

DEVIATIONS = 1.5
"""A candidate is given up when it is worse by more standard errors of the paired items."""


class BudgetError(Exception):
    """No further candidate may be scored."""


def dealt(items: Mapping[str, int], seed: int) -> list[dict[str, list[int]]]:
    """Folds of the items of several tasks: task -> indices, each item in one fold.

    Args:
        items: Task -> how many items it has.
        seed: Of the order in which they are dealt.
    """
    number = max(1, min(FOLDS, min(items.values()) // FOLD_ITEMS))
    folds: list[dict[str, list[int]]] = [{} for _ in range(number)]
    for task, count in items.items():
        order = list(range(count))
        Random(f"{seed} {task}").shuffle(order)
        for place, fold in enumerate(folds):
            fold[task] = sorted(order[place::number])
    return folds


def choosing_folds(number: int) -> range:
    """Of so many folds, those whose items choose: two thirds, the first ones."""
    return range(number - number // 3)


@dataclass
class Contest:
    """Candidates of one domain, and what is known of them.

    Attributes:
        score: Of a candidate on the items of one fold, by its number.
        folds: How many there are.
        dense: Task -> score of the dense fine-tuned model.
        budget: How many candidates may be scored.
        known: Candidate and fold -> scores.
        told: Called when a candidate has been scored.
        preferred: Of equals, the one that a strategy would have win.
    """

    score: Callable[[Candidate, int], Scores]
    folds: int
    dense: Mapping[str, float]
    budget: int
    known: dict[tuple[Candidate, int], Scores] = field(default_factory=dict)
    told: Callable[[Candidate], None] = lambda candidate: None
    preferred: Candidate | None = None

    @property
    def choosing(self) -> range:
        """The folds that choose; all, where there are too few to confirm."""
        return choosing_folds(self.folds)

    @property
    def confirming(self) -> range:
        """The folds that confirm."""
        return range(self.choosing.stop, self.folds)

    @property
    def scored(self) -> list[Candidate]:
        """The candidates that have been scored on some items, in order."""
        return list(dict.fromkeys(candidate for candidate, _ in self.known))

    def scores(self, candidate: Candidate, folds: Iterable[int]) -> Scores:
        """The scores of a candidate on the items of several folds.

        Raises:
            BudgetError: It is a new candidate, and too many have been scored.
        """
        found = []
        for fold in folds:
            if (candidate, fold) not in self.known:
                scored = self.scored
                if candidate not in scored and len(scored) >= self.budget:
                    raise BudgetError
                self.known[candidate, fold] = self.score(candidate, fold)
                self.told(candidate)
            found.append(self.known[candidate, fold])
        return joined(found)

    def value(self, candidate: Candidate) -> float:
        """By what candidates are chosen: the smoothed Domain-Ratio on the choosing items."""
        return smoothed_ratio(self.scores(candidate, self.choosing), self.dense)

    def estimate(self, candidate: Candidate, folds: Iterable[int] | None = None) -> Estimate:
        """The Domain-Ratio with its standard error; on all items where no folds are named."""
        chosen = range(self.folds) if folds is None else folds
        return ratio_estimate(self.scores(candidate, chosen), self.dense)

    def race(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that no other beats by more than chance, scored on all choosing items; best first.

        Of equals, those nearer 1 come first.
        """
        alive = list(dict.fromkeys(candidates))
        for last in self.choosing:
            seen = range(last + 1)
            of_candidate = {each: self.scores(each, seen) for each in alive}
            leader = min(alive, key=lambda each: self._rank(of_candidate[each], each))
            alive = [
                each
                for each in alive
                if each == leader or self._may_win(of_candidate[leader], of_candidate[each])
            ]
        return sorted(alive, key=lambda each: self._rank(self.scores(each, self.choosing), each))

    def leaders(self) -> list[Candidate]:
        """All candidates that were scored on all choosing items and leave nothing out; best first.

        Of equals, the preferred comes first, then those nearer 1.
        """
        whole = [
            each
            for each in self.scored
            if 0 not in each and all((each, fold) in self.known for fold in self.choosing)
        ]
        return sorted(whole, key=lambda each: self._rank(self.scores(each, self.choosing), each))

    def confirmed(self, start: Candidate) -> Candidate:
        """The best candidate that is no worse than the start on the items that did not choose it.

        Nor on all items, by the exact Domain-Ratio.

        Args:
            start: What the search began with, and what it ends with if no other holds.
        """
        for candidate in self.leaders():
            if candidate == start or self._holds(candidate, start):
                return candidate
        return start

    def _holds(self, candidate: Candidate, start: Candidate) -> bool:
        every = range(self.folds)
        gain = domain_ratio(self.scores(candidate, every), self.dense) - domain_ratio(
            self.scores(start, every), self.dense
        )
        if not self.confirming or gain < 0:
            return gain >= 0
        fresh, of_start = (self.scores(each, self.confirming) for each in (candidate, start))
        return difference(fresh, of_start, self.dense).value >= 0

    def _rank(self, scores: Scores, candidate: Candidate) -> tuple[float, int, Candidate]:
        away = -1 if candidate == self.preferred else distance(candidate)
        return -smoothed_ratio(scores, self.dense), away, candidate

    def _may_win(self, leader: Scores, other: Scores) -> bool:
        behind = difference(leader, other, self.dense)
        return behind.error is None or behind.value <= DEVIATIONS * behind.error


def distance(candidate: Candidate) -> int:
    """How far a candidate is from factors 1."""
    return sum(abs(factor - ONE) for factor in candidate)
