"""The core of a search by evaluation: for the factors of one model, or the numbers of a merge.

The numbers of a merge are its weights, the factors of all its models, or both. A search for the
factors of one model (DPA) takes it alone on the base, at weight 1; its partitions down to its
density get factors. Trials score the candidates, and only see dev tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
from dppa_mergekit.search.results import Confirmed, SearchResult, Standing
from dppa_mergekit.search.strategies import STRATEGIES, Strategy
from dppa_mergekit.search.trials import Trials, require_teacher
from dppa_mergekit.storage.journal import Journal


@dataclass
class CandidateSearch:
    """A search for the factors of one domain's model, or for weights and factors of a merge.

    Attributes:
        domain: The domain's name, MERGE, or the label of an entrant of a contest.
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
        references: The domain under which the journal keeps the scores of the fine-tuned models,
            where several searches share them; None for `domain`.
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
    references: str | None = None

    def run(self) -> SearchResult:
        """Search, and confirm the result on items that took no part in the choice.

        Raises:
            DppaError: The strategy needs a teacher and the trials have none.
            TasksError: A fine-tuned model does not score above 0 on a task.
        """
        return self.confirm().result

    def lead(self) -> Standing:
        """Search, and return how the best candidate stands on the choosing items.

        Raises:
            DppaError: As for `run`.
        """
        contest, candidates, _ = self._search()
        best, *_ = contest.leaders()
        return self._standing(contest, candidates, best, contest.choosing)

    def confirm(self) -> Confirmed:
        """Search, and return the confirmed result with its standing on all items.

        Raises:
            DppaError: As for `run`.
        """
        contest, candidates, fine_tuned = self._search()
        best = contest.confirmed()
        self.best_so_far(candidates.settings(best))
        return Confirmed(
            self._result(contest, candidates, best, fine_tuned),
            self._standing(contest, candidates, best, range(contest.folds)),
        )

    def _standing(
        self, contest: Contest, candidates: Candidates, best: Candidate, folds: Iterable[int]
    ) -> Standing:
        return Standing(
            candidates.settings(best),
            contest.scores(best, folds),
            contest.objective,
            len(contest.scored),
            self._evaluations.seconds,
            contest.has_perfect,
        )

    def _search(self) -> tuple[Contest, Candidates, Scores]:
        """Run the strategy; return contest, candidates and the scores of the fine-tuned models."""
        if self._strategy.needs_teacher:
            require_teacher(self.trials, self.options.strategy)
        fine_tuned = self.score_fine_tuned()
        folds = self._folds_to_score(fine_tuned)
        candidates = self._candidates(folds)
        contest = self._contest(candidates, folds, fine_tuned)
        self._explore(contest, candidates)
        return contest, candidates, fine_tuned

    def score_fine_tuned(self) -> Scores:
        """Return the scores of the fine-tuned models; with a journal, evaluated only once.

        Raises:
            TasksError: A score is not above 0.
        """
        every = _every(self._folds)
        known = self._evaluations
        if self.references not in (None, self.domain):
            known = Evaluations(str(self.references), self.journal)
        (scores,) = known.scores(
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
            share=self.options.share or self.options.max_evaluations,
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

    def _explore(self, contest: Contest, candidates: Candidates) -> None:
        """Run the strategy until it ends or the budget is spent."""
        bar: tqdm[NoReturn] = tqdm(
            total=self.options.max_evaluations, desc=self.domain, unit="candidate", delay=2
        )
        with bar:
            progress = _Progress(contest, candidates, bar, self.best_so_far)
            contest.on_scored = progress.update
            contest.value(contest.start)
            with suppress(BudgetError):
                self._strategy.search(contest, candidates.space)

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
                if name in candidates.settings(best)
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
    name = candidates.names[index]
    for candidate in sorted(contest.scored):
        if name not in candidates.settings(candidate):
            continue  # it stands for the recipe as it is
        if candidate[:index] == best[:index] and candidate[index + 1 :] == best[index + 1 :]:
            folds = [fold for fold in range(contest.folds) if (candidate, fold) in contest.known]
            found.append((candidate[index] / ONE, contest.estimate(candidate, folds)))
    return found
