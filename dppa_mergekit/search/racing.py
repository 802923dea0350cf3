"""A contest of candidates that are scored item by item: few items first, more for who survives.

Knows neither models nor lm-eval: what scores a candidate is given. Items are dealt out to folds
once. Those of the first folds choose among candidates; those of the last, which chose nothing,
confirm the winner. A candidate that is worse than the leader by more than chance allows, item by
item on the same items, is not scored any further. Nothing is scored twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from dppa_mergekit.scoring.objectives import DEVIATIONS, Objective
from dppa_mergekit.scoring.ratios import Estimate, Scores, join_scores

Candidate: TypeAlias = tuple[int, ...]
"""Factors or weights, in hundredths."""

ONE = 100
"""A factor of 1."""

FOLDS = 6
"""Into how many parts items are dealt, and so how soon a bad candidate is given up."""

FOLD_ITEMS = 8
"""Fewer items of a task in a fold say nothing."""

LEAST_FOLDS = 3
"""So that some choose, and others confirm."""


class BudgetError(Exception):
    """No further candidate may be scored."""


def deal(items: Mapping[str, int], seed: int, batch: int = 1) -> list[dict[str, list[int]]]:
    """Folds of the items of several tasks: task -> indices, each item in one fold.

    Args:
        items: Task -> how many items it has.
        seed: Of the order in which they are dealt.
        batch: How many are scored at once: a smaller fold takes nearly as long.
    """
    filled = max(LEAST_FOLDS, sum(items.values()) // batch)
    number = max(1, min(FOLDS, filled, min(items.values()) // FOLD_ITEMS))
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
    """Candidates of one search, and what is known of them.

    Attributes:
        score: Of candidates, each on the items of one fold, by its number: their scores, in
            order, one by one as they come.
        folds: How many there are.
        objective: By what they are compared.
        budget: How many candidates may be scored.
        start: What the search begins with.
        complete: Whether a candidate may win: one that leaves a partition out may not.
        known: Candidate and fold -> scores.
        told: Called when a candidate has been scored.
        preferred: Of equals, the one that a strategy would have win.
    """

    score: Callable[[Sequence[tuple[Candidate, int]]], Iterable[Scores]]
    folds: int
    objective: Objective
    budget: int
    start: Candidate
    complete: Callable[[Candidate], bool] = lambda candidate: True
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
        wanted = [(candidate, fold) for fold in folds]
        self._know(wanted)
        return join_scores([self.known[each] for each in wanted])

    def _know(self, wanted: Iterable[tuple[Candidate, int]]) -> None:
        """Score what is not known, in order, together.

        Raises:
            BudgetError: One is a new candidate, and too many have been scored; those before it are.
        """
        missing = [each for each in dict.fromkeys(wanted) if each not in self.known]
        scored, allowed = set(self.scored), 0
        for candidate, _ in missing:
            scored.add(candidate)
            if len(scored) > self.budget:
                break
            allowed += 1
        for each, scores in zip(missing, self.score(missing[:allowed]), strict=False):
            self.known[each] = scores
            self.told(each[0])
        if allowed < len(missing):
            raise BudgetError

    def value(self, candidate: Candidate) -> float:
        """By what candidates are chosen: the smoothed objective on the choosing items."""
        return self.objective.smoothed(self.scores(candidate, self.choosing))

    def estimate(self, candidate: Candidate, folds: Iterable[int] | None = None) -> Estimate:
        """The objective with its standard error; on all items where no folds are named."""
        chosen = range(self.folds) if folds is None else folds
        return self.objective.estimate(self.scores(candidate, chosen))

    def race(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that no other beats by more than chance, scored on all choosing items; best first.

        Of equals, those nearer the start come first.
        """
        alive = list(dict.fromkeys(candidates))
        for last in self.choosing:
            seen = range(last + 1)
            self._know((each, fold) for each in alive for fold in seen)
            of_candidate = {each: self.scores(each, seen) for each in alive}
            leader = min(alive, key=lambda each: self._rank(of_candidate[each], each))
            alive = [
                each
                for each in alive
                if each == leader or self._may_win(of_candidate[leader], of_candidate[each])
            ]
        return sorted(alive, key=lambda each: self._rank(self.scores(each, self.choosing), each))

    def leaders(self) -> list[Candidate]:
        """All complete candidates that were scored on all choosing items; best first.

        Of equals, the preferred comes first, then those nearer the start.
        """
        whole = [
            each
            for each in self.scored
            if self.complete(each) and all((each, fold) in self.known for fold in self.choosing)
        ]
        return sorted(whole, key=lambda each: self._rank(self.scores(each, self.choosing), each))

    def confirmed(self) -> Candidate:
        """The best candidate that is no worse than the start on the items that did not choose it.

        Nor on all items, by the exact objective; where all lose more than is allowed, the one that
        loses least. The start, if no other holds.
        """
        best, least = self.start, math.inf
        for candidate in self.leaders():
            if candidate == self.start or self._holds(candidate):
                lost = self.objective.lost(self.scores(candidate, range(self.folds)))
                if lost < least:
                    best, least = candidate, lost
                if not lost:
                    break
        return best

    def _holds(self, candidate: Candidate) -> bool:
        exact, lost = self.objective.exact, self.objective.lost
        ours, of_start = (self.scores(each, range(self.folds)) for each in (candidate, self.start))
        gain = exact(ours) - exact(of_start)
        if not self.confirming or gain < 0:
            return gain >= 0
        if lost(ours) < lost(of_start):
            return True
        fresh, of_start = (self.scores(each, self.confirming) for each in (candidate, self.start))
        return self.objective.difference(fresh, of_start).value >= 0

    def _rank(self, scores: Scores, candidate: Candidate) -> tuple[float, int, Candidate]:
        away = -1 if candidate == self.preferred else distance(candidate, self.start)
        return -self.objective.smoothed(scores), away, candidate

    def _may_win(self, leader: Scores, other: Scores) -> bool:
        behind = self.objective.difference(leader, other)
        return behind.error is None or behind.value <= DEVIATIONS * behind.error


def distance(candidate: Candidate, start: Candidate) -> int:
    """How far a candidate is from another."""
    return sum(abs(each - other) for each, other in zip(candidate, start, strict=True))
