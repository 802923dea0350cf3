"""Search strategies: the order in which candidates are tried.

A strategy drives a contest, which remembers all scores. The result of a search is the best
candidate scored when the strategy ends, or when the budget is spent. A strategy knows neither
models nor lm-eval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from dppa_mergekit.search.racing import ONE, BudgetError, Candidate, Contest, Stage

STEP = 10
"""The paper's step: a tenth."""

COARSE, FINER = 4 * STEP, (2 * STEP, STEP)
"""The step of a search's first grid, and the steps around the best candidate of it."""


@dataclass(frozen=True)
class Space:
    """The values that a search may try: factors of a model or merge, or weights of a merge.

    Attributes:
        start: The candidate to start from, in hundredths as all values here.
        low: The least value.
        high: The largest value.
        downwards: Whether factors are tried below 1 instead of above: those of random partitions,
            whose deltas were divided by the density.
        patience: Steps in a row without gain after which a climb ends.
        proposal: The teacher's proposal, for a strategy that needs a teacher.
        groups: Indices of values that are first tuned together, such as those of one model.
        relative: Whether only the ratios of the values count.
        stages: The spaces of weights and of factors, where a candidate has first these and then
            those.
    """

    start: Candidate
    low: int
    high: int
    downwards: bool = False
    patience: int = 1
    proposal: Candidate | None = None
    groups: Sequence[Sequence[int]] = ()
    relative: bool = False
    stages: Sequence[Space] = ()

    @property
    def size(self) -> int:
        """The number of values in a candidate."""
        return len(self.start)

    def contains(self, candidate: Candidate) -> bool:
        """Return whether all values of a candidate are in range."""
        return all(self.low <= value <= self.high for value in candidate)


@dataclass(frozen=True)
class Strategy:
    """A search strategy.

    Attributes:
        search: Tries candidates in a contest.
        needs_teacher: Whether the fine-tuned model must first propose a candidate.
    """

    search: Callable[[Contest, Space], None]
    needs_teacher: bool = False


def climb(contest: Contest, space: Space) -> None:
    """Climb as in the paper (3.3.2), from both of its initialisations.

    Method 1: partitions of lower rates are absent while one is tuned, and are added one by one.
    Method 2: all partitions are present, at factor 1, from the start.
    """
    for untuned in (0, ONE):  # Method 1, Method 2
        factors = [untuned] * space.size
        for index in range(space.size):
            factors[index] = ONE
            factors = list(_climb_one(contest, space, tuple(factors), index))


def _climb_one(contest: Contest, space: Space, start: Candidate, index: int) -> Candidate:
    """Change one factor by steps of a tenth, from 1 on, until patience is spent."""
    step = -STEP if space.downwards else STEP
    best, value, misses, factor = start, contest.value(start), 0, ONE
    while misses < space.patience and space.low <= factor + step <= space.high:
        factor += step
        candidate = _replace(start, index, factor)
        reached = contest.value(candidate)
        if reached > value:
            best, value, misses = candidate, reached, 0
        else:
            misses += 1
    return best


def search_jointly(contest: Contest, space: Space) -> None:
    """Search all factors together, by coordinates; then add the candidates of the paper's climb."""
    _search_coordinates(contest, space)
    climb(contest, space)


def _search_coordinates(contest: Contest, space: Space) -> None:
    """Tune one value for all factors, then one factor after another, until none improves.

    Every time a coarse grid comes first, then finer steps around its best.
    """
    before = contest.value(space.start)
    current = _tune(contest, space, space.start, range(space.size))
    while True:
        for index in range(space.size):
            current = _tune(contest, space, current, [index])
        reached = contest.value(current)
        if reached <= before:
            break
        before = reached


def search_model_by_model(contest: Contest | Stage, space: Space) -> None:
    """Try one weight for all models on a coarse grid, then change one model's weight at a time.

    A step that helps is taken at once; when none helps, steps get finer. Within a small budget,
    models get weights of their own sooner in this way than by a whole grid for every model. Where
    only ratios count, all common weights are the same merge, so one of them is enough.
    """
    grid = [space.start[0]] if space.relative else _grid(space, space.start[0])
    shared = [(weight,) * space.size for weight in grid]
    current = contest.race([space.start, *shared])[0]
    for step in (COARSE, *FINER):
        helped = True
        while helped:
            helped = False
            for index in range(space.size):
                moved = (current[index] - step, current[index] + step)
                inside = [value for value in moved if space.low <= value <= space.high]
                around = [_replace(current, index, value) for value in inside]
                best = contest.race([current, *around])[0]
                if contest.value(best) > contest.value(current):
                    current = contest.preferred = best
                    helped = True


def search_group_by_group(contest: Contest | Stage, space: Space) -> None:
    """Tune one value for all, then one for each group, then every value by itself.

    Groups and single values move by steps that get finer; a step that helps is taken at once.
    """
    current = _tune(contest, space, space.start, range(space.size))
    singles = [(index,) for index in range(space.size)]
    for groups in (space.groups, singles):
        for step in FINER if len(groups) > 1 else ():
            for group in groups:
                moved = [_move(current, group, step * sign) for sign in (-1, 1)]
                inside = [candidate for candidate in moved if space.contains(candidate)]
                best = contest.race([current, *inside])[0]
                if contest.value(best) > contest.value(current):
                    current = contest.preferred = best


def search_weights_then_factors(contest: Contest, space: Space) -> None:
    """Search the weights with factors as they are, then the factors with the best weights.

    Weights get half of the budget.
    """
    weights, factors = space.stages
    budget, contest.budget = contest.budget, min(contest.budget, contest.share // 2)
    with suppress(BudgetError):
        search_model_by_model(Stage(contest, (), factors.start), weights)
    contest.budget = budget
    best, *_ = contest.leaders()
    search_group_by_group(Stage(contest, best[: weights.size], ()), factors)


def _move(candidate: Candidate, indices: Sequence[int], move: int) -> Candidate:
    return tuple(
        value + move if index in indices else value for index, value in enumerate(candidate)
    )


def search_around_proposal(contest: Contest, space: Space) -> None:
    """Try the teacher's proposal and a handful of candidates around it, twice.

    Raises:
        ValueError: The space has no proposal.
    """
    if space.proposal is None:
        raise ValueError("The space has no proposal.")
    contest.preferred = space.proposal
    for step in (2 * STEP, STEP):
        centre = contest.preferred
        around = [
            _replace(centre, index, centre[index] + move)
            for index in range(space.size)
            for move in (-step, step)
        ]
        around += [tuple(factor + move for factor in centre) for move in (-step, step)]
        halfway = tuple(
            (proposed + first) // 2 for proposed, first in zip(centre, space.start, strict=True)
        )
        inside = [candidate for candidate in around if space.contains(candidate)]
        contest.preferred = contest.race([space.start, centre, halfway, *inside])[0]


def _tune(
    contest: Contest | Stage, space: Space, start: Candidate, indices: Sequence[int]
) -> Candidate:
    """Return the best candidate that differs from a start in one value, equal at all indices."""

    def candidate_with(value: int) -> Candidate:
        candidate = start
        for index in indices:
            candidate = _replace(candidate, index, value)
        return candidate

    first = indices[0]
    centre = space.start[first]
    tried = {value: candidate_with(value) for value in (*_grid(space, centre), start[first])}
    best = _middle_of_best(contest, tried, centre)
    for step in FINER:
        around = [best[first] - step, best[first] + step]
        inside = [value for value in around if space.low <= value <= space.high]
        tried.update({value: candidate_with(value) for value in inside})
        best = _middle_of_best(contest, tried, centre)
    contest.preferred = best
    return best


def _grid(space: Space, centre: int) -> range:
    """Return the coarse grid over the whole range that contains a value."""
    return range(space.low + (centre - space.low) % COARSE, space.high + 1, COARSE)


def _middle_of_best(
    contest: Contest | Stage, tried: Mapping[int, Candidate], centre: int
) -> Candidate:
    """Return the best of the candidates tried; of a plateau of equals, the middle one.

    Where the search's starting value is on the plateau, return its candidate.

    Args:
        contest: Scores the candidates.
        tried: Value -> candidate with that value.
        centre: The value that the search starts from.
    """
    ranked = contest.race(list(tried.values()))
    value = contest.value(ranked[0])
    best = {candidate for candidate in ranked if contest.value(candidate) == value}
    plateau: list[int] = []
    for factor in sorted(tried):
        if tried[factor] in best:
            plateau.append(factor)
        elif ranked[0] in (tried[other] for other in plateau):
            break
        else:
            plateau.clear()
    if centre in plateau:
        return tried[centre]
    middles = plateau[(len(plateau) - 1) // 2 : len(plateau) // 2 + 1]
    return tried[min(middles, key=lambda factor: abs(factor - centre))]


def _replace(candidate: Candidate, index: int, value: int) -> Candidate:
    return (*candidate[:index], value, *candidate[index + 1 :])


WEIGHTS = "weights"
"""The strategy for the weights of a merge."""

MERGE_FACTORS = "merge factors"
"""The strategy for the factors of all models in a merge."""

BOTH = "weights and factors"
"""The strategy for the weights and then the factors of a merge."""

OF_ONE_MODEL: dict[str, Strategy] = {
    "paper": Strategy(climb),
    "joint": Strategy(search_jointly),
    "distill": Strategy(search_around_proposal, needs_teacher=True),
}
"""Name -> a strategy for the factors of one model."""

STRATEGIES: dict[str, Strategy] = {
    **OF_ONE_MODEL,
    WEIGHTS: Strategy(search_model_by_model),
    MERGE_FACTORS: Strategy(search_group_by_group),
    BOTH: Strategy(search_weights_then_factors),
}
"""Name -> strategy; those beside `OF_ONE_MODEL` are for a whole merge."""
