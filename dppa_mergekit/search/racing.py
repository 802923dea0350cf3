"""A race between candidates that are scored item by item: few items first, more for the survivors.

The race knows neither models nor lm-eval; it is given a function that scores candidates. Items are
dealt into folds once. The items of the first folds choose among the candidates. Those of the last
folds take no part in the choice, and confirm the winner. A candidate that is worse than the leader
on the same items, by more than chance allows, is given up. Nothing is scored twice.
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
"""A factor of 1, in hundredths."""

FOLDS = 6
"""The largest number of folds. With more folds, a bad candidate is given up sooner."""

FOLD_ITEMS = 8
"""The least number of a task's items in a fold; fewer carry no information."""

LEAST_FOLDS = 3
"""The least number of folds of a race: two choose, one confirms."""


class BudgetError(Exception):
    """No further candidate may be scored: the budget is spent, or there is nothing to gain."""


def deal(items: Mapping[str, int], seed: int, batch: int = 1) -> list[dict[str, list[int]]]:
    """Deal the items of several tasks into folds.

    Args:
        items: Task -> number of its items.
        seed: Seed of the order in which items are dealt.
        batch: Number of items that are scored at once. A fold with fewer takes nearly as long.

    Returns:
        1 to FOLDS folds, task -> indices of items in each; an item is in exactly one fold. One fold
        if the tasks have too few items to confirm a choice. Two if one batch holds all choosing
        items: the first chooses, the second confirms.
    """
    filled = max(LEAST_FOLDS, sum(items.values()) // batch)
    number = min(FOLDS, filled, min(items.values()) // FOLD_ITEMS)
    if number < LEAST_FOLDS:
        number = 1
    folds: list[dict[str, list[int]]] = [{} for _ in range(number)]
    for task, count in items.items():
        order = list(range(count))
        Random(f"{seed} {task}").shuffle(order)
        for first, fold in enumerate(folds):
            fold[task] = sorted(order[first::number])
    choosing = [folds[fold] for fold in choosing_folds(number)]
    if (
        number == LEAST_FOLDS
        and sum(len(own) for fold in choosing for own in fold.values()) <= batch
    ):
        joined = {task: sorted(item for fold in choosing for item in fold[task]) for task in items}
        return [joined, *folds[len(choosing) :]]
    return folds


def choosing_folds(number: int) -> range:
    """Return which folds choose, of a number: the first two thirds, or the first of two."""
    return range(max(1, number - max(1, number // 3)))


@dataclass
class Contest:
    """The candidates of one search, and all scores known so far.

    Attributes:
        score: Scores (candidate, fold) pairs: yields one `Scores` for each, in order.
        folds: Number of folds.
        objective: Compares candidates.
        budget: Number of candidates that may be scored.
        share: The same in the last round, where a search is made in rounds; see `Options`.
        start: The candidate that the search starts from.
        complete: Whether a candidate may win; one that leaves a partition out may not.
        known: (candidate, fold) -> scores.
        on_scored: Called after a candidate has been scored on a fold.
        preferred: The candidate that the strategy wants to win among equals.
        has_perfect: Whether a candidate is right on every choosing item, so that no new one can be
            better.
    """

    score: Callable[[Sequence[tuple[Candidate, int]]], Iterable[Scores]]
    folds: int
    objective: Objective
    budget: int
    start: Candidate
    complete: Callable[[Candidate], bool] = lambda candidate: True
    known: dict[tuple[Candidate, int], Scores] = field(default_factory=dict)
    on_scored: Callable[[Candidate], None] = lambda candidate: None
    preferred: Candidate | None = None
    has_perfect: bool = False
    share: int = 0

    @property
    def choosing(self) -> range:
        """The folds that choose; all of them where there are too few to confirm."""
        return choosing_folds(self.folds)

    @property
    def confirming(self) -> range:
        """The folds that confirm the winner."""
        return range(self.choosing.stop, self.folds)

    @property
    def scored(self) -> list[Candidate]:
        """The candidates that have been scored on some items, in the order of their first score."""
        return list(dict.fromkeys(candidate for candidate, _ in self.known))

    def scores(self, candidate: Candidate, folds: Iterable[int]) -> Scores:
        """Return the scores of a candidate on the items of several folds.

        Raises:
            BudgetError: The candidate is new and the budget is spent.
        """
        wanted = [(candidate, fold) for fold in folds]
        self._ensure_known(wanted)
        return join_scores([self.known[pair] for pair in wanted])

    def _ensure_known(self, wanted: Iterable[tuple[Candidate, int]]) -> None:
        """Score the pairs that are not known yet, in order and in one call.

        Raises:
            BudgetError: A candidate is new, and the budget is spent or no candidate can be better
                than one that is known; those before it are scored.
        """
        missing = [pair for pair in dict.fromkeys(wanted) if pair not in self.known]
        scored, allowed = set(self.scored), 0
        budget = len(scored) if self.has_perfect else self.budget
        for candidate, _ in missing:
            scored.add(candidate)
            if len(scored) > budget:
                break
            allowed += 1
        for pair, scores in zip(missing, self.score(missing[:allowed]), strict=False):
            self.known[pair] = scores
            candidate, _ = pair
            self.has_perfect = self.has_perfect or self._is_perfect(candidate)
            self.on_scored(candidate)
        if allowed < len(missing):
            raise BudgetError

    def _is_perfect(self, candidate: Candidate) -> bool:
        """Return whether a candidate may win and is right on every choosing item, all known."""
        pairs = [(candidate, fold) for fold in self.choosing]
        if not self.complete(candidate) or any(pair not in self.known for pair in pairs):
            return False
        return self.objective.is_perfect(join_scores([self.known[pair] for pair in pairs]))

    def value(self, candidate: Candidate) -> float:
        """Return the value that candidates are chosen by: the smoothed objective, choosing items.

        Raises:
            BudgetError: The candidate is new and the budget is spent.
        """
        return self.objective.smoothed(self.scores(candidate, self.choosing))

    def estimate(self, candidate: Candidate, folds: Iterable[int] | None = None) -> Estimate:
        """Return the objective with its standard error, on all items unless folds are given."""
        chosen = range(self.folds) if folds is None else folds
        return self.objective.estimate(self.scores(candidate, chosen))

    def race(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates that no other beats by more than chance, best first.

        They are scored on all choosing items. Among equals, those nearer the start come first.

        Raises:
            BudgetError: A candidate is new and the budget is spent.
        """
        alive = list(dict.fromkeys(candidates))
        for last in self.choosing:
            seen = range(last + 1)
            self._ensure_known((candidate, fold) for candidate in alive for fold in seen)
            so_far = {candidate: self.scores(candidate, seen) for candidate in alive}
            leader = min(alive, key=lambda candidate: self._rank(so_far[candidate], candidate))
            alive = [
                candidate
                for candidate in alive
                if candidate == leader or self._may_win(so_far[leader], so_far[candidate])
            ]
        return self._ranked(alive)

    def leaders(self) -> list[Candidate]:
        """Return all complete candidates that were scored on all choosing items, best first.

        Among equals, the preferred candidate comes first, then those nearer the start.
        """
        return self._ranked(
            candidate
            for candidate in self.scored
            if self.complete(candidate)
            and all((candidate, fold) in self.known for fold in self.choosing)
        )

    def confirmed(self) -> Candidate:
        """Return the best candidate that is no worse than the start on the confirming items.

        It is no worse on all items either, by the exact objective. Where every candidate loses more
        on guard tasks than is allowed, it is the one that loses least. It is the start if no other
        candidate passes.
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
        """Return whether a candidate is no worse than the start on items that did not choose it."""
        exact, lost = self.objective.exact, self.objective.lost
        every = range(self.folds)
        own, of_start = self.scores(candidate, every), self.scores(self.start, every)
        gain = exact(own) - exact(of_start)
        if not self.confirming or gain < 0:
            return gain >= 0
        if lost(own) < lost(of_start):
            return True
        own = self.scores(candidate, self.confirming)
        of_start = self.scores(self.start, self.confirming)
        return self.objective.difference(own, of_start).value >= 0

    def _ranked(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """Return candidates by their scores on all choosing items, best first."""
        return sorted(
            candidates,
            key=lambda candidate: self._rank(self.scores(candidate, self.choosing), candidate),
        )

    def _rank(self, scores: Scores, candidate: Candidate) -> tuple[float, int, Candidate]:
        away = -1 if candidate == self.preferred else _distance(candidate, self.start)
        return -self.objective.smoothed(scores), away, candidate

    def _may_win(self, leader: Scores, other: Scores) -> bool:
        """Return whether chance may explain why a candidate is behind the leader."""
        behind = self.objective.difference(leader, other)
        return behind.error is None or behind.value <= DEVIATIONS * behind.error


@dataclass
class Stage:
    """A contest of some of a candidate's numbers, with the others held.

    Attributes:
        contest: The contest of whole candidates.
        before: The numbers before these.
        after: The numbers after these.
    """

    contest: Contest
    before: Candidate
    after: Candidate

    @property
    def preferred(self) -> Candidate | None:
        """The numbers that the strategy wants to win among equals."""
        whole = self.contest.preferred
        return None if whole is None else self._own(whole)

    @preferred.setter
    def preferred(self, own: Candidate | None) -> None:
        self.contest.preferred = None if own is None else self._whole(own)

    def value(self, own: Candidate) -> float:
        """See `Contest.value`."""
        return self.contest.value(self._whole(own))

    def race(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """See `Contest.race`."""
        return [self._own(whole) for whole in self.contest.race([*map(self._whole, candidates)])]

    def _whole(self, own: Candidate) -> Candidate:
        return (*self.before, *own, *self.after)

    def _own(self, whole: Candidate) -> Candidate:
        return whole[len(self.before) : len(whole) - len(self.after)]


def _distance(candidate: Candidate, start: Candidate) -> int:
    """Return the distance between two candidates: the sum of absolute differences."""
    return sum(abs(value - other) for value, other in zip(candidate, start, strict=True))
