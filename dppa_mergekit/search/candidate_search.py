"""The core of a search by evaluation: for the factors of one model, or the weights of a merge.

A search for factors (DPA) takes one fine-tuned model alone on the base, at weight 1; its partitions
down to its density get factors. Trials score the candidates, and only see dev tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import NoReturn

from tqdm import tqdm

from dppa_mergekit.scoring.objectives import DomainObjective, Objective
from dppa_mergekit.scoring.ratios import Estimate, Items, Scores
from dppa_mergekit.scoring.tasks import check_fine_tuned_scores
from dppa_mergekit.search.candidates import (
    Candidates,
    MakeCandidates,
    Proposal,
    Settings,
    describe,
    factor_candidates,
)
from dppa_mergekit.search.evaluations import ALL, FINE_TUNED, Evaluations
from dppa_mergekit.search.options import Options
from dppa_mergekit.search.racing import ONE, BudgetError, Candidate, Contest, choosing_folds, deal
from dppa_mergekit.search.strategies import STRATEGIES, Strategy
from dppa_mergekit.search.trials import Trials, require_teacher
from dppa_mergekit.storage.journal import Journal

MERGE = "merge"
"""The domain of a search for the weights or factors of a whole merge."""


@dataclass(frozen=True)
class SearchResult:
    """The result of a search for one domain, or for a merge.

    Attributes:
        domain: The domain's name, or MERGE.
        model: Its fine-tuned model, as the recipe spells it; the base model of a merge.
        factors: Recipe parameter -> factor, or factors for each block. For a merge, model ->
            weight, or model and parameter -> factor; empty where the recipe's own are best.
        fine_tuned: Task -> score of the domain's fine-tuned model; on guard tasks, of the base.
        before: Dev Domain-Ratio at the start, in percent: at factors 1; for a merge, of the recipe.
        after: Dev Domain-Ratio of the result, in percent.
        confirmed: `before` and `after` on the items that took no part in the choice; None where all
            items did.
        evaluations: Number of candidates scored.
        seconds: Time that all evaluations took, in this run and in the runs that it resumed.
        parts: The parts of a merge's Domain-Ratio: domain -> its ratio before and after.
        lost: Share of guard scores lost beyond what is allowed, 0 or more.
        curves: Factor or model -> (value, Domain-Ratio) of the candidates that differ from the
            result in it alone, on as many items as each candidate was scored on. Empty for factors
            of each block, and where `factors` is empty.
    """

    domain: str
    model: str
    factors: Settings
    fine_tuned: Mapping[str, float]
    before: Estimate
    after: Estimate
    confirmed: tuple[Estimate, Estimate] | None
    evaluations: int
    seconds: float
    parts: Mapping[str, tuple[Estimate, Estimate]]
    lost: float
    curves: Mapping[str, Sequence[tuple[float, Estimate]]]

    def to_record(self) -> dict[str, object]:
        """Return plain data for a run record, which calls the fine-tuned models' scores `dense`."""
        return {
            "dense" if name == "fine_tuned" else name: value for name, value in asdict(self).items()
        }


@dataclass
class CandidateSearch:
    """A search for the factors of one domain's model, or for the weights of a merge.

    Attributes:
        domain: The domain's name, or MERGE.
        model: Its fine-tuned model, as the recipe spells it.
        items: Task -> number of items, 0 where it is scored as a whole. Empty where the trials know
            their own tasks.
        trials: Scores the candidates.
        options: How to search.
        journal: Keeps the evaluations, and has those of earlier runs; None to keep none.
        objective: Makes the objective of candidates from task -> score of the fine-tuned models.
        make_candidates: Makes the candidates from what can be set.
        best_so_far: Called with the factors or weights that are best so far, after every score.
        batch: Number of items that are scored at once.
    """

    domain: str
    model: str
    items: Mapping[str, int]
    trials: Trials
    options: Options
    journal: Journal | None = None
    objective: Callable[[Mapping[str, float]], Objective] = DomainObjective
    make_candidates: MakeCandidates = factor_candidates
    best_so_far: Callable[[Settings], None] = lambda settings: None
    batch: int = 1

    def run(self) -> SearchResult:
        """Search, and confirm the result on items that took no part in the choice.

        Raises:
            DppaError: The strategy needs a teacher and the trials have none.
            TasksError: A fine-tuned model does not score above 0 on a task.
        """
        if self._strategy.needs_teacher:
            require_teacher(self.trials, self.options.strategy)
        fine_tuned = self.score_fine_tuned()
        folds = self._folds_to_score(fine_tuned)
        candidates = self._candidates(folds)
        contest = self._contest(candidates, folds, fine_tuned)
        best = self._search(contest, candidates)
        return self._result(contest, candidates, best, fine_tuned)

    def score_fine_tuned(self) -> Scores:
        """Return the scores of the fine-tuned models; with a journal, evaluated only once.

        Raises:
            TasksError: A score is not above 0.
        """
        every = _every(self._folds)
        (scores,) = self._evaluations.scores(
            [(FINE_TUNED, ALL)],
            lambda missing: (self.trials.score_fine_tuned(every) for _ in missing),
        )
        check_fine_tuned_scores(_values(scores))
        return scores

    @property
    def _strategy(self) -> Strategy:
        return STRATEGIES[self.options.strategy]

    @cached_property
    def _evaluations(self) -> Evaluations:
        return Evaluations(self.domain, self.journal)

    @cached_property
    def _folds(self) -> list[Items]:
        """The items in folds; one fold where a task is scored as a whole."""
        if self.items and all(self.items.values()):
            return list(deal(self.items, self.options.seed, self.batch))
        return [dict.fromkeys(self.items, ())]

    def _folds_to_score(self, fine_tuned: Scores) -> list[Items]:
        """Return the folds that candidates are scored on.

        The score of a metric that is no mean over items cannot be joined from the scores of folds:
        then all items are one fold.
        """
        if any(not fine_tuned[task].items for task, number in self.items.items() if number):
            return [_every(self._folds)]
        return self._folds

    def _candidates(self, folds: Sequence[Items]) -> Candidates:
        """Return the candidates, after the teacher's proposal if the strategy needs one."""
        names = self.trials.parameters()
        proposal = self._proposal(names, folds) if self._strategy.needs_teacher else None
        return self.make_candidates(names, self.options, proposal)

    def _proposal(self, names: Sequence[str], folds: Sequence[Items]) -> Proposal:
        """Return what the teacher proposes from the choosing items."""
        options = self.options
        trials = require_teacher(self.trials, options.strategy)
        choosing = choosing_folds(len(folds))
        items = {
            task: [item for fold in choosing for item in folds[fold][task]] for task in folds[0]
        }
        return self._evaluations.proposal(
            names, lambda: trials.propose(items, options.low, options.high, options.seed)
        )

    def _contest(
        self, candidates: Candidates, folds: Sequence[Items], fine_tuned: Scores
    ) -> Contest:
        """Return the contest of the candidates on the folds."""

        def score(wanted: Sequence[tuple[Candidate, int]]) -> Iterator[Scores]:
            return self._score(candidates, folds, wanted)

        return Contest(
            score,
            len(folds),
            self.objective(_values(fine_tuned)),
            self.options.max_evaluations,
            candidates.space.start,
            candidates.may_win,
        )

    def _score(
        self,
        candidates: Candidates,
        folds: Sequence[Items],
        wanted: Sequence[tuple[Candidate, int]],
    ) -> Iterator[Scores]:
        """Yield the scores of candidates on folds, from the journal or by trials."""
        trials = [(candidates.settings(candidate), folds[fold]) for candidate, fold in wanted]
        return self._evaluations.scores(
            [(describe(candidates, candidate), fold) for candidate, fold in wanted],
            lambda missing: self.trials.score_all([trials[index] for index in missing]),
        )

    def _search(self, contest: Contest, candidates: Candidates) -> Candidate:
        """Run the strategy until it ends or the budget is spent; return the confirmed best."""
        bar: tqdm[NoReturn] = tqdm(
            total=self.options.max_evaluations, desc=self.domain, unit="candidate", delay=2
        )
        with bar:
            progress = _Progress(contest, candidates, bar, self.best_so_far)
            contest.on_scored = progress.update
            contest.value(contest.start)
            with suppress(BudgetError):
                self._strategy.search(contest, candidates.space)
            best = contest.confirmed()
            self.best_so_far(candidates.settings(best))
        return best

    def _result(
        self, contest: Contest, candidates: Candidates, best: Candidate, fine_tuned: Scores
    ) -> SearchResult:
        """Return the result; all its scores are known."""
        confirming = contest.confirming
        confirmed = None
        if confirming:
            confirmed = (
                contest.estimate(contest.start, confirming),
                contest.estimate(best, confirming),
            )
        curves = {}
        if candidates.settings(best) and not self.options.per_block:
            curves = {
                name: _curve(contest, candidates, best, index)
                for index, name in enumerate(candidates.names)
            }
        return SearchResult(
            domain=self.domain,
            model=self.model,
            factors=candidates.settings(best),
            fine_tuned=_values(fine_tuned),
            before=contest.estimate(contest.start),
            after=contest.estimate(best),
            confirmed=confirmed,
            evaluations=len(contest.scored),
            seconds=self._evaluations.seconds,
            parts=_parts(contest, best),
            lost=contest.objective.lost(contest.scores(best, range(contest.folds))),
            curves=curves,
        )


@dataclass(frozen=True)
class _Progress:
    """Reports how far a search is: the candidate just scored, and the best so far."""

    contest: Contest
    candidates: Candidates
    bar: tqdm[NoReturn]
    best_so_far: Callable[[Settings], None]

    def update(self, candidate: Candidate) -> None:
        """Report after a candidate has been scored."""
        contest = self.contest
        leaders = contest.leaders()
        text = describe(self.candidates, candidate)
        if leaders:
            self.best_so_far(self.candidates.settings(leaders[0]))
            text = f"best {contest.estimate(leaders[0], contest.choosing)}, {text}"
        self.bar.update(len(contest.scored) - self.bar.n)
        self.bar.set_postfix_str(text, refresh=False)


def _values(scores: Scores) -> dict[str, float]:
    return {task: score.value for task, score in scores.items()}


def _every(folds: Sequence[Items]) -> Items:
    """Return the items of all folds."""
    return {task: sorted(item for fold in folds for item in fold[task]) for task in folds[0]}


def _parts(contest: Contest, best: Candidate) -> dict[str, tuple[Estimate, Estimate]]:
    """Return the parts of the objective, by name, at the start and of the best candidate."""
    every = range(contest.folds)
    before = contest.objective.parts(contest.scores(contest.start, every))
    after = contest.objective.parts(contest.scores(best, every))
    return {name: (before[name], after[name]) for name in after}


def _curve(
    contest: Contest, candidates: Candidates, best: Candidate, index: int
) -> list[tuple[float, Estimate]]:
    """Return (value at an index, estimate) of the candidates that equal the best one elsewhere."""
    found = []
    for candidate in filter(candidates.settings, sorted(contest.scored)):
        if candidate[:index] == best[:index] and candidate[index + 1 :] == best[index + 1 :]:
            folds = [fold for fold in range(contest.folds) if (candidate, fold) in contest.known]
            found.append((candidate[index] / ONE, contest.estimate(candidate, folds)))
    return found
