"""A search by evaluation: the factors of one fine-tuned model, or the weights of a whole merge.

For its factors (DPA) a model is alone on the base, at weight 1: its partitions down to its density
get factors. What scores candidates is given, as a bench; only dev tasks are seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

from tqdm import tqdm

from dppa_mergekit.errors import ParameterError
from dppa_mergekit.recipes import Setting
from dppa_mergekit.scoring.objectives import DomainObjective, Objective
from dppa_mergekit.scoring.ratios import Estimate, Items, Score, Scores
from dppa_mergekit.scoring.tasks import check_fine_tuned_scores
from dppa_mergekit.search.factor_trials import Bench, Proposal
from dppa_mergekit.search.racing import ONE, BudgetError, Candidate, Contest, choosing_folds, deal
from dppa_mergekit.search.strategies import STRATEGIES, Space
from dppa_mergekit.storage.journal import Entry, Journal

DENSE_CANDIDATE = "dense"
"""In a journal: the fine-tuned models as they are; of guard tasks, the base model."""

PROPOSAL = "proposal"
"""In a journal: the factors that the teacher proposes."""

ALL = -1
"""In a journal: all folds at once."""


@dataclass(frozen=True)
class Options:
    """How to search.

    Attributes:
        strategy: A name in STRATEGIES.
        max_evaluations: Candidates for each search.
        patience: Steps without gain after which the paper's climb ends.
        low: The least factor or weight.
        high: The largest.
        downwards: Whether factors reduce, as those of random partitions do.
        seed: Of the order in which items are dealt out.
        per_block: Whether the teacher proposes factors for each block; then candidates lie on the
            way from factors 1 to its proposal.

    Raises:
        ParameterError: There is nothing to try.
    """

    strategy: str = "joint"
    max_evaluations: int = 60
    patience: int = 1
    low: float = 0.2
    high: float = 3.0
    downwards: bool = False
    seed: int = 0
    per_block: bool = False

    def __post_init__(self) -> None:
        """Raise ParameterError for what is not allowed."""
        for name, number in (
            ("max_evaluations", self.max_evaluations),
            ("patience", self.patience),
        ):
            if number < 1:
                raise ParameterError(f"{name} is {number}; allowed is 1 or more.")


@dataclass(frozen=True)
class SearchResult:
    """What a search found for one domain, or for a merge.

    Attributes:
        domain: Its name; that of a merge is MERGE.
        model: Its fine-tuned model, as the recipe spells it.
        factors: Recipe parameter -> factor, or factors for each block; of a merge, what has a
            weight -> weight.
        dense: Task -> score of the domain's dense fine-tuned model; of guard tasks, of the base.
        before: Dev Domain-Ratio at the start: at factors 1, or at the recipe's weights.
        after: At what was found.
        confirmed: Both on the items that did not choose; None where all did.
        evaluations: How many candidates were scored.
        seconds: What that took, in this run and in those that it went on with.
        parts: What a merge's Domain-Ratio is made of: domain -> before and after.
        lost: What guard tasks lose beyond what is allowed, as a share; 0 where nothing is.
        curves: Of each of the factors, unless they are for each block: (factor, Domain-Ratio) of
            the candidates that differ from the result in it alone, on as many items as each was
            scored on.
    """

    domain: str
    model: str
    factors: Mapping[str, Setting]
    dense: Mapping[str, float]
    before: Estimate
    after: Estimate
    confirmed: tuple[Estimate, Estimate] | None
    evaluations: int
    seconds: float
    parts: Mapping[str, tuple[Estimate, Estimate]]
    lost: float
    curves: Mapping[str, Sequence[tuple[float, Estimate]]]


MERGE = "merge"
"""In place of a domain: the whole merge."""


@dataclass
class CandidateSearch:
    """The search for the factors of one domain's model, or for the weights of a merge.

    Attributes:
        domain: The domain's name.
        model: Its fine-tuned model, as the recipe spells it.
        items: Task -> number of items, 0 where it is scored as a whole; nothing where the bench
            knows its own tasks.
        bench: Where candidates are tried.
        options: How to search.
        journal: Where evaluations are kept, and come from; None to keep none.
        objective: From task -> score of the dense models, by what candidates are compared.
        weights: What weights the search begins with; None for a search of factors.
        best_so_far: Is told the factors, or weights, that are best so far, whenever some are.
        batch: How many items are scored at once.
        seconds: Of all evaluations so far.
    """

    domain: str
    model: str
    items: Mapping[str, int]
    bench: Bench
    options: Options
    journal: Journal | None = None
    objective: Callable[[Mapping[str, float]], Objective] = DomainObjective
    weights: Sequence[float] | None = None
    best_so_far: Callable[[Mapping[str, Setting]], None] = lambda factors: None
    batch: int = 1
    seconds: float = field(default=0.0, init=False)

    def run(self) -> SearchResult:
        """Search, confirm, and say what was found.

        Raises:
            TasksError: The dense fine-tuned model scores nothing on a task.
        """
        scores = self.dense()
        dense = {task: score.value for task, score in scores.items()}
        known = self._known()
        folds = self._folds()
        if any(not scores[task].items for task, number in self.items.items() if number):
            # A metric that is no mean over items cannot be put together from parts of them.
            folds = [_every(folds)]
        names = self.bench.parameters()
        options = self.options
        taught = self._proposal(known, folds, names) if options.strategy == "distill" else {}

        def factors(candidate: Candidate) -> dict[str, Setting]:
            if self.weights is not None and candidate == space.start:
                # As the recipe has them, to the last digit.
                return dict(zip(names, self.weights, strict=True))
            values = {name: each / ONE for name, each in zip(names, candidate, strict=True)}
            if not options.per_block:
                return dict(values)
            moved = {
                name: [
                    min(max(round(1 + values[name] * (factor - 1), 4), options.low), options.high)
                    for factor in taught[name]
                ]
                for name in names
            }
            return {name: each[0] if len(each) == 1 else each for name, each in moved.items()}

        def score(wanted: Sequence[tuple[Candidate, int]]) -> Iterator[Scores]:
            trials = [(factors(candidate), folds[fold]) for candidate, fold in wanted]
            texts = [(_text(names, candidate), fold) for candidate, fold in wanted]
            return self._evaluated(
                known,
                texts,
                lambda missing: self.bench.score_all([trials[place] for place in missing]),
            )

        contest, space = self._contest(score, len(folds), dense, names, taught)
        bar: tqdm[NoReturn] = tqdm(
            total=options.max_evaluations, desc=self.domain, unit="candidate", delay=2
        )
        with bar:

            def told(candidate: Candidate) -> None:
                leaders = contest.leaders()
                if leaders:
                    self.best_so_far(factors(leaders[0]))
                _show(bar, contest, names, candidate)

            contest.told = told
            contest.value(space.start)
            with suppress(BudgetError):
                STRATEGIES[options.strategy](contest, space)
            best = contest.confirmed()
            self.best_so_far(factors(best))
        confirmed = None
        if contest.confirming:
            confirmed = (
                contest.estimate(space.start, contest.confirming),
                contest.estimate(best, contest.confirming),
            )
        return SearchResult(
            self.domain,
            self.model,
            factors(best),
            dense,
            contest.estimate(space.start),
            contest.estimate(best),
            confirmed,
            len(contest.scored),
            self.seconds,
            _parts(contest, best),
            contest.objective.lost(contest.scores(best, range(contest.folds))),
            {}
            if options.per_block
            else {name: _curve(contest, best, place) for place, name in enumerate(names)},
        )

    def dense(self) -> Scores:
        """The scores of the dense fine-tuned model; with a journal, evaluated once.

        Raises:
            TasksError: One is not above 0.
        """
        every = _every(self._folds())
        (scores,) = self._evaluated(
            self._known(),
            [(DENSE_CANDIDATE, ALL)],
            lambda missing: (self.bench.dense(every) for _ in missing),
        )
        check_fine_tuned_scores({task: score.value for task, score in scores.items()})
        return scores

    def _folds(self) -> list[Items]:
        if self.items and all(self.items.values()):
            return list(deal(self.items, self.options.seed, self.batch))
        return [dict.fromkeys(self.items, ())]

    def _contest(
        self,
        score: Callable[[Sequence[tuple[Candidate, int]]], Iterator[Scores]],
        folds: int,
        dense: Mapping[str, float],
        names: Sequence[str],
        taught: Proposal,
    ) -> tuple[Contest, Space]:
        """What candidates there are, and the contest of them."""
        options = self.options
        if options.per_block:
            # Shares of the way from factors 1 to the proposal, or beyond it.
            start, low, high = [0.0] * len(names), 0.0, 2.0
            proposal = (ONE,) * len(names)
        else:
            start = [1.0] * len(names) if self.weights is None else list(self.weights)
            low, high = options.low, options.high
            proposal = tuple(round(taught[name][0] * ONE) for name in names if taught)
        begin = tuple(round(value * ONE) for value in start)
        space = Space(
            begin,
            round(low * ONE),
            round(high * ONE),
            options.downwards,
            options.patience,
            proposal or None,
        )
        # A factor of 0 leaves a partition out, which is a step on the way and no result.
        partial = self.weights is not None or options.per_block
        contest = Contest(
            score,
            folds,
            self.objective(dense),
            options.max_evaluations,
            begin,
            lambda candidate: partial or 0 not in candidate,
        )
        return contest, space

    def _proposal(
        self,
        known: Mapping[tuple[str, int], Entry],
        folds: Sequence[Items],
        names: Sequence[str],
    ) -> Proposal:
        """What the teacher proposes by the items that choose, from the journal if it is there."""
        entry = known.get((PROPOSAL, ALL))
        if entry is None:
            begun = time.perf_counter()
            choosing = choosing_folds(len(folds))
            items = {task: [x for fold in choosing for x in folds[fold][task]] for task in folds[0]}
            options = self.options
            found = self.bench.distill(items, options.low, options.high, options.seed)
            entry = {
                "domain": self.domain,
                "candidate": PROPOSAL,
                "fold": ALL,
                "factors": {name: found[name] for name in names},
                "seconds": round(time.perf_counter() - begun, 3),
            }
            if self.journal is not None:
                self.journal.add(entry)
        self.seconds += float(str(entry["seconds"]))
        factors = entry["factors"]
        assert isinstance(factors, dict)
        return factors

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
        wanted: Sequence[tuple[str, int]],
        evaluate: Callable[[Sequence[int]], Iterator[Scores]],
    ) -> Iterator[Scores]:
        """Scores of candidates, in order: what the journal has, or new ones, which it then has.

        Args:
            known: What it has, by candidate and fold.
            wanted: Candidates and folds.
            evaluate: Given places in `wanted`, yields new scores.
        """
        fresh = evaluate([place for place, each in enumerate(wanted) if each not in known])
        begun = time.perf_counter()
        for candidate, fold in wanted:
            entry = known.get((candidate, fold))
            if entry is None:
                scores = next(fresh)
                entry = {
                    "domain": self.domain,
                    "candidate": candidate,
                    "fold": fold,
                    "scores": {task: [each.value, *each.items] for task, each in scores.items()},
                    "errors": {task: each.error for task, each in scores.items()},
                    "seconds": round(time.perf_counter() - begun, 3),
                }
                if self.journal is not None:
                    self.journal.add(entry)
            begun = time.perf_counter()
            self.seconds += float(str(entry["seconds"]))
            held = entry["scores"]
            assert isinstance(held, dict)
            yield {task: Score(value, tuple(items)) for task, (value, *items) in held.items()}


def _every(folds: Sequence[Items]) -> Items:
    """All items of all folds."""
    return {task: sorted(x for fold in folds for x in fold[task]) for task in folds[0]}


def _parts(contest: Contest, best: Candidate) -> dict[str, tuple[Estimate, Estimate]]:
    every = range(contest.folds)
    before, after = (
        contest.objective.parts(contest.scores(each, every)) for each in (contest.start, best)
    )
    return {name: (before[name], after[name]) for name in after}


def _curve(contest: Contest, best: Candidate, place: int) -> list[tuple[float, Estimate]]:
    """Factor at one place, and the estimate, of all candidates that are else the best one."""
    found = []
    for candidate in sorted(contest.scored):
        if candidate[:place] == best[:place] and candidate[place + 1 :] == best[place + 1 :]:
            folds = [fold for fold in range(contest.folds) if (candidate, fold) in contest.known]
            found.append((candidate[place] / ONE, contest.estimate(candidate, folds)))
    return found


def _text(names: Sequence[str], candidate: Candidate) -> str:
    return ", ".join(f"{name} {each / ONE:g}" for name, each in zip(names, candidate, strict=True))


def _show(
    bar: tqdm[NoReturn], contest: Contest, names: Sequence[str], candidate: Candidate
) -> None:
    """How far the search is, what it tries, and the best so far."""
    bar.update(len(contest.scored) - bar.n)
    best = contest.leaders()[:1]
    value = f"best {contest.estimate(best[0], contest.choosing)}, " if best else ""
    bar.set_postfix_str(value + _text(names, candidate), refresh=False)
