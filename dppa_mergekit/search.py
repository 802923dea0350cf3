"""DPA's search: the amplification factors of a fine-tuned model of a recipe, by evaluation.

The model is tuned alone on the base, at weight 1: its partitions down to its density get factors.
What scores it is given, as a bench; only its dev tasks are seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from tqdm import tqdm

from dppa_mergekit.benches import Bench, Items
from dppa_mergekit.contest import ONE, BudgetError, Candidate, Contest, choosing_folds, dealt
from dppa_mergekit.journal import Entry, Journal
from dppa_mergekit.scores import Estimate, Score, Scores
from dppa_mergekit.strategies import STRATEGIES, Space
from dppa_mergekit.tasks import TasksError

DENSE_CANDIDATE = "dense"
"""In a journal: the fine-tuned model as it is."""

PROPOSAL = "proposal"
"""In a journal: the factors that the teacher proposes."""

ALL = -1
"""In a journal: all folds at once."""


@dataclass(frozen=True)
class Options:
    """How to search.

    Attributes:
        strategy: A name in STRATEGIES.
        max_evaluations: Candidates for each domain.
        patience: Steps without gain after which the paper's climb ends.
        low: The least factor.
        high: The largest.
        downwards: Whether factors reduce, as those of random partitions do.
        seed: Of the order in which items are dealt out.
    """

    strategy: str = "joint"
    max_evaluations: int = 60
    patience: int = 1
    low: float = 0.2
    high: float = 3.0
    downwards: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Tuned:
    """What a search found for one domain.

    Attributes:
        domain: Its name.
        model: Its fine-tuned model, as the recipe spells it.
        factors: Recipe parameter -> factor.
        dense: Task -> score of the dense fine-tuned model.
        before: Dev Domain-Ratio at factors 1.
        after: At the factors found.
        confirmed: Both on the items that did not choose; None where all did.
        evaluations: How many candidates were scored.
        seconds: What that took, in this run and in those that it went on with.
        curves: Recipe parameter -> (factor, Domain-Ratio) of the candidates that differ from the
            result in this factor alone, on as many items as each was scored on.
    """

    domain: str
    model: str
    factors: Mapping[str, float]
    dense: Mapping[str, float]
    before: Estimate
    after: Estimate
    confirmed: tuple[Estimate, Estimate] | None
    evaluations: int
    seconds: float
    curves: Mapping[str, Sequence[tuple[float, Estimate]]]


@dataclass
class DomainSearch:
    """The search for the factors of one domain's model.

    Attributes:
        domain: The domain's name.
        model: Its fine-tuned model, as the recipe spells it.
        items: Task -> number of items, 0 where it is scored as a whole; nothing where the bench
            knows its own tasks.
        bench: Where candidates are tried.
        options: How to search.
        journal: Where evaluations are kept, and come from; None to keep none.
        seconds: Of all evaluations so far.
    """

    domain: str
    model: str
    items: Mapping[str, int]
    bench: Bench
    options: Options
    journal: Journal | None = None
    seconds: float = field(default=0.0, init=False)

    def run(self) -> Tuned:
        """Search, confirm, and say what was found.

        Raises:
            TasksError: The dense fine-tuned model scores nothing on a task.
        """
        known = self._known()
        folds: list[Items] = [dict.fromkeys(self.items, ())]
        if self.items and all(self.items.values()):
            folds = list(dealt(self.items, self.options.seed))
        every = {task: sorted(x for fold in folds for x in fold[task]) for task in self.items}
        scores = self._evaluated(known, DENSE_CANDIDATE, ALL, lambda: self.bench.dense(every))
        dense = {task: score.value for task, score in scores.items()}
        for task, value in dense.items():
            if not value > 0:
                raise TasksError(
                    f"{self.model} itself scores {value:g} on task {task}, and a ratio to that "
                    f"says nothing: leave the task out, or mend it."
                )
        names = self.bench.parameters()

        def score(candidate: Candidate, fold: int) -> Scores:
            factors = _factors(names, candidate)
            return self._evaluated(
                known, _text(factors), fold, lambda: self.bench.score(factors, folds[fold])
            )

        options = self.options
        space = Space(
            len(names),
            round(options.low * ONE),
            round(options.high * ONE),
            options.downwards,
            options.patience,
            lambda: self._proposal(known, folds, names),
        )
        contest = Contest(score, len(folds), dense, options.max_evaluations)
        bar: tqdm[NoReturn] = tqdm(
            total=options.max_evaluations, desc=self.domain, unit="candidate", delay=2
        )
        with bar:
            contest.told = lambda candidate: _show(bar, contest, names, candidate)
            contest.value(space.start)
            with suppress(BudgetError):
                STRATEGIES[options.strategy](contest, space)
            best = contest.confirmed(space.start)
        confirmed = None
        if contest.confirming:
            confirmed = (
                contest.estimate(space.start, contest.confirming),
                contest.estimate(best, contest.confirming),
            )
        return Tuned(
            self.domain,
            self.model,
            _factors(names, best),
            dense,
            contest.estimate(space.start),
            contest.estimate(best),
            confirmed,
            len(contest.scored),
            self.seconds,
            {name: _curve(contest, best, place) for place, name in enumerate(names)},
        )

    def _proposal(
        self,
        known: Mapping[tuple[str, int], Entry],
        folds: Sequence[Items],
        names: Sequence[str],
    ) -> Candidate:
        """What the teacher proposes by the items that choose, from the journal if it is there."""
        entry = known.get((PROPOSAL, ALL))
        if entry is None:
            begun = time.perf_counter()
            choosing = choosing_folds(len(folds))
            items = {task: [x for fold in choosing for x in folds[fold][task]] for task in folds[0]}
            options = self.options
            factors = self.bench.distilled(items, options.low, options.high, options.seed)
            entry = {
                "domain": self.domain,
                "candidate": PROPOSAL,
                "fold": ALL,
                "factors": [round(factors[name] * ONE) for name in names],
                "seconds": round(time.perf_counter() - begun, 3),
            }
            if self.journal is not None:
                self.journal.add(entry)
        self.seconds += float(str(entry["seconds"]))
        found = entry["factors"]
        assert isinstance(found, list)
        return tuple(found)

    def _known(self) -> dict[tuple[str, int], Entry]:
        entries = [] if self.journal is None else self.journal.entries
        return {
            (str(entry["candidate"]), int(str(entry["fold"]))): entry
            for entry in entries
            if entry["domain"] == self.domain
        }

    def _evaluated(
        self,
        known: Mapping[tuple[str, int], Entry],
        candidate: str,
        fold: int,
        evaluate: Callable[[], Scores],
    ) -> Scores:
        """The scores that the journal has of a candidate, or new ones, which it then has."""
        entry = known.get((candidate, fold))
        if entry is None:
            begun = time.perf_counter()
            scores = evaluate()
            entry = {
                "domain": self.domain,
                "candidate": candidate,
                "fold": fold,
                "scores": {task: [score.value, *score.items] for task, score in scores.items()},
                "errors": {task: score.error for task, score in scores.items()},
                "seconds": round(time.perf_counter() - begun, 3),
            }
            if self.journal is not None:
                self.journal.add(entry)
        self.seconds += float(str(entry["seconds"]))
        held = entry["scores"]
        assert isinstance(held, dict)
        return {task: Score(value, tuple(items)) for task, (value, *items) in held.items()}


def _curve(contest: Contest, best: Candidate, place: int) -> list[tuple[float, Estimate]]:
    """Factor at one place, and the estimate, of all candidates that are else the best one."""
    found = []
    for candidate in sorted(contest.scored):
        if candidate[:place] == best[:place] and candidate[place + 1 :] == best[place + 1 :]:
            folds = [fold for fold in range(contest.folds) if (candidate, fold) in contest.known]
            found.append((candidate[place] / ONE, contest.estimate(candidate, folds)))
    return found


def _factors(names: Sequence[str], candidate: Candidate) -> dict[str, float]:
    return {name: factor / ONE for name, factor in zip(names, candidate, strict=True)}


def _text(factors: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {factor:g}" for name, factor in factors.items())


def _show(
    bar: tqdm[NoReturn], contest: Contest, names: Sequence[str], candidate: Candidate
) -> None:
    """How far the search is, what it tries, and the best so far."""
    bar.update(len(contest.scored) - bar.n)
    best = contest.leaders()[:1]
    value = f"best {contest.estimate(best[0], contest.choosing)}, " if best else ""
    bar.set_postfix_str(value + _text(_factors(names, candidate)), refresh=False)
