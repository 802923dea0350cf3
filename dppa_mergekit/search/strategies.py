"""Search strategies: in which order candidates are tried.

A strategy drives a contest, which remembers; what has been scored best at its end, or when the
budget is spent, is the result. It knows neither models nor lm-eval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dppa_mergekit.search.racing import ONE, Candidate, Contest

STEP = 10
"""The paper's step: a tenth."""

COARSE, FINER = 4 * STEP, (2 * STEP, STEP)
"""The first grid of a search, and the steps around its best."""


@dataclass(frozen=True)
class Space:
    """The factors of one model, or the weights of a merge, that are tuned.

    Attributes:
        start: What they are, in hundredths.
        low: The least.
        high: The largest.
        downwards: Whether factors reduce: of random partitions, which were rescaled.
        patience: Steps without gain after which a climb ends.
        proposal: What the strategy `distill` begins with.
    """

    start: Candidate
    low: int
    high: int
    downwards: bool = False
    patience: int = 1
    proposal: Candidate | None = None

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.start)


Strategy = Callable[[Contest, Space], None]


def paper(contest: Contest, space: Space) -> None:
    """The paper's hill climb (3.3.2), from both initialisations.

    Method 1: partitions of lower rates are absent while one is tuned, and are added one by one.
    Method 2: all are there, at factor 1, from the start.
    """
    for absent in (0, ONE):
        factors = [absent] * space.size
        for place in range(space.size):
            factors[place] = ONE
            factors = list(_climb(contest, space, tuple(factors), place))


def _climb(contest: Contest, space: Space, start: Candidate, place: int) -> Candidate:
    """From factor 1 by steps of a tenth, until so many in a row do not improve."""
    step = -STEP if space.downwards else STEP
    best, value, misses, factor = start, contest.value(start), 0, ONE
    while misses < space.patience and space.low <= factor + step <= space.high:
        factor += step
        candidate = _moved(start, place, factor)
        reached = contest.value(candidate)
        if reached > value:
            best, value, misses = candidate, reached, 0
        else:
            misses += 1
    return best


def joint(contest: Contest, space: Space) -> None:
    """Coordinate search over all factors together, then the paper's climbs as candidates too."""
    _coordinates(contest, space)
    paper(contest, space)


def _coordinates(contest: Contest, space: Space) -> None:
    """First one value for all, then each by itself, round after round until none improves.

    A coarse grid, and finer steps around its best.
    """
    before = contest.value(space.start)
    current = _tune(contest, space, space.start, range(space.size))
    while True:
        for place in range(space.size):
            current = _tune(contest, space, current, [place])
        reached = contest.value(current)
        if reached <= before:
            break
        before = reached


def weights(contest: Contest, space: Space) -> None:
    """One weight for all models on a coarse grid, then steps of one model's after another's.

    A step that helps is taken at once; when none does, steps get finer. With few candidates, models
    so get weights of their own sooner than by a whole grid for each.
    """
    shared = [(weight,) * space.size for weight in _grid(space, space.start[0])]
    current = contest.race([space.start, *shared])[0]
    for step in (COARSE, *FINER):
        helped = True
        while helped:
            helped = False
            for place in range(space.size):
                moved = (current[place] - step, current[place] + step)
                inside = [each for each in moved if space.low <= each <= space.high]
                around = [_moved(current, place, each) for each in inside]
                best = contest.race([current, *around])[0]
                if contest.value(best) > contest.value(current):
                    current = contest.preferred = best
                    helped = True


def distill(contest: Contest, space: Space) -> None:
    """What the teacher proposes, and a handful of candidates around it, twice."""
    if space.proposal is None:
        raise ValueError("there is no proposal to begin with")
    contest.preferred = space.proposal
    for step in (2 * STEP, STEP):
        centre = contest.preferred
        around = [
            _moved(centre, place, centre[place] + moved)
            for place in range(space.size)
            for moved in (-step, step)
        ]
        around += [tuple(factor + moved for factor in centre) for moved in (-step, step)]
        halfway = tuple(
            (each + first) // 2 for each, first in zip(centre, space.start, strict=True)
        )
        inside = [
            each for each in around if all(space.low <= factor <= space.high for factor in each)
        ]
        contest.preferred = contest.race([space.start, centre, halfway, *inside])[0]


def _tune(contest: Contest, space: Space, start: Candidate, places: Sequence[int]) -> Candidate:
    """The best candidate with other factors, all equal, at some places."""

    def at(factor: int) -> Candidate:
        moved = start
        for place in places:
            moved = _moved(moved, place, factor)
        return moved

    low, high = space.low, space.high
    centre = space.start[places[0]]
    tried = {factor: at(factor) for factor in (*_grid(space, centre), start[places[0]])}
    best = _middle(contest, tried, centre)
    for step in FINER:
        here = best[places[0]]
        around = [here - step, here + step]
        tried.update({factor: at(factor) for factor in around if low <= factor <= high})
        best = _middle(contest, tried, centre)
    contest.preferred = best
    return best


def _grid(space: Space, centre: int) -> range:
    """The coarse grid over the whole range that a value lies on."""
    return range(space.low + (centre - space.low) % COARSE, space.high + 1, COARSE)


def _middle(contest: Contest, tried: Mapping[int, Candidate], centre: int) -> Candidate:
    """The best of those tried, by their value; of a plateau of equals around it, the middle.

    What the space starts with if that is on the plateau.
    """
    ranked = contest.race(list(tried.values()))
    value = contest.value(ranked[0])
    best = {each for each in ranked if contest.value(each) == value}
    plateau: list[int] = []
    for factor in sorted(tried):
        if tried[factor] in best:
            plateau.append(factor)
        elif ranked[0] in (tried[each] for each in plateau):
            break
        else:
            plateau.clear()
    if centre in plateau:
        return tried[centre]
    middles = plateau[(len(plateau) - 1) // 2 : len(plateau) // 2 + 1]
    return tried[min(middles, key=lambda factor: abs(factor - centre))]


def _moved(candidate: Candidate, place: int, factor: int) -> Candidate:
    return (*candidate[:place], factor, *candidate[place + 1 :])


WEIGHTS = "weights"
"""The strategy for the weights of a merge; the others are for factors."""

STRATEGIES: dict[str, Strategy] = {
    "paper": paper,
    "joint": joint,
    "distill": distill,
    WEIGHTS: weights,
}
