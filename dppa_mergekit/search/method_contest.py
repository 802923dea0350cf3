"""A contest of merge methods: the same models under each method, tuned with an equal budget.

Every method has an equal share of the candidates, which its densities share. Shares are spent in
rounds. After each, an entrant that is worse than the leader on the same items, by more than chance
allows among so many, is given up, but not before its factors were tried, if they are. What is left
is confirmed on items that took no part in the choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from dppa_mergekit import method_table
from dppa_mergekit.checks.mergekit_schema import RANDOM_METHODS
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.temporary_merge import RANDOM_SEED
from dppa_mergekit.merging.dry_run import dry_run
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.report.plot_style import is_installed
from dppa_mergekit.search.candidate_search import CandidateSearch
from dppa_mergekit.search.candidates import Settings
from dppa_mergekit.search.contest_report import contest_summary, draw_contest
from dppa_mergekit.search.entrants import Entrant, Placed, entrants_of
from dppa_mergekit.search.merge_search import MergeSearch, warn_of_lost_guards
from dppa_mergekit.search.recipe_search import Best, RecipeTuning, Scoring
from dppa_mergekit.search.results import MERGE, Standing
from dppa_mergekit.search.strategies import BOTH, WEIGHTS
from dppa_mergekit.search.trials import Trials
from dppa_mergekit.search.weight_factor_search import WeightFactorSearch
from dppa_mergekit.search.weight_search import WeightSearch
from dppa_mergekit.storage.journal import Journal
from dppa_mergekit.storage.output_files import write_whole
from dppa_mergekit.storage.run_record import write_record
from dppa_mergekit.version import __version__

FIRST_ROUND = 6
"""The least candidates of an entrant's first round: its start, and a grid of common weights."""

ROUNDS = (0.25, 0.5, 0.75, 1.0)
"""The share of an entrant's budget that is spent when a round ends."""


@dataclass(frozen=True)
class MethodContest(RecipeTuning):
    """A contest of methods on the models of a recipe; see `RecipeTuning`.

    The budget, `options.max_evaluations`, is that of all methods together.

    Attributes:
        methods: The methods.
        with_factors: Whether factors are tuned where a method has them.
        worst: Whether the least Domain-Ratio counts, in place of the mean.
        guard_loss: The share of the base model's score that a guard task may lose, 0 to 1.
    """

    guarded: ClassVar[bool] = True

    methods: Sequence[str] = ()
    with_factors: bool = False
    worst: bool = False
    guard_loss: float = 0.05

    @cached_property
    def entrants(self) -> Mapping[str, Entrant]:
        """Label -> entrant."""
        return {one.label: one for one in entrants_of(self.recipe, self.methods)}

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded.

        Raises:
            DppaError: As for every search; or an entrant cannot be searched.
        """
        super().check()
        if self.options.max_evaluations < len(self.entrants):
            raise DppaError(
                f"--max-evaluations is {self.options.max_evaluations}; allowed is a number from "
                f"{len(self.entrants)}, one for each entrant."
            )
        for one in self.entrants.values():
            self._tuning(one, 1).check()
        for one in self.entrants.values():
            try:
                with dry_run(one.recipe, "", loading=self.placement.loading):
                    pass
            except DppaError as error:
                raise DppaError(
                    f"{one.label} cannot enter the contest, so leave {one.method} out of "
                    f"--methods: {error}"
                ) from error

    def run(self) -> list[Placed]:
        """Run the contest, and write the best recipe, a table, a plot and a record of the run.

        Interrupted, write the recipe with the best values so far.

        Returns:
            The entrants, best first; those that were given up come last.

        Raises:
            DppaError: An input cannot be used; before the first evaluation where possible.
        """
        placed = self.tune(self._compete)
        winner = placed[0]
        recipe = self.recipe_with({winner.entrant.label: winner.standing.settings})
        comment = (
            f"The best of {len(placed)} entrants of mergekit-dppa search {__version__}, "
            f"from {Path(self.recipe.origin).name}"
        )
        if winner.entrant.method in RANDOM_METHODS:
            comment += f"\nmergekit-yaml --random-seed {RANDOM_SEED} makes the draw that was tuned"
        warn_of_lost_guards(winner.standing.lost, self.guard_loss)
        write_whole(self.output, recipe.to_yaml(comment))
        write_whole(self.output.with_suffix(".md"), contest_summary(placed))
        if is_installed():
            draw_contest(placed, self.output.with_suffix(".png"))
        records = [one.to_record() for one in placed]
        write_record(self.output, "search", self.subject(), records)
        return placed

    def trials(self, domain: str, scoring: Scoring) -> Trials:
        """Return the trials of an entrant in this process."""
        return self._tuning(self.entrants[domain], 1).trials(MERGE, scoring)

    def recipe_with(self, found: Mapping[str, Settings]) -> Recipe:
        """Return the recipe of the one entrant that something was found for."""
        ((label, settings),) = found.items()
        return self._tuning(self.entrants[label], 1).recipe_with({MERGE: settings})

    def subject(self) -> dict[str, object]:
        """Return the inputs of the contest; with other methods, it goes on from what is known."""
        goal = {"worst": self.worst, "guard_loss": self.guard_loss, "factors": self.with_factors}
        return super().subject() | {"merge": goal}

    def budget_of(self, entrant: Entrant) -> int:
        """The number of candidates of an entrant: its share of its method's share."""
        densities = sum(one.method == entrant.method for one in self.entrants.values())
        return max(1, self.options.max_evaluations // len(self.methods) // densities)

    def _compete(self, scoring: Scoring, journal: Journal, best: Best) -> list[Placed]:
        """Run the rounds; return the entrants, best first, those that were given up last."""
        alive, given_up = list(self.entrants.values()), list[Placed]()
        standings: dict[str, Standing] = {}
        budgets: dict[str, int] = {}
        with self.open_trials(scoring) as trials_of:

            def search_of(one: Entrant) -> CandidateSearch:
                def keep(settings: Settings) -> None:
                    """Make the first entrant's best the best so far, until one is compared."""
                    if best.keys() <= {one.label}:
                        best[one.label] = settings

                tuning, trials = self._tuning(one, budgets[one.label]), trials_of(one.label)
                return tuning.candidate_search(one.label, scoring, trials, journal, keep)

            for spent in ROUNDS:
                for number, one in enumerate(alive, start=1):
                    whole = self.budget_of(one)
                    budgets[one.label] = max(min(FIRST_ROUND, whole), int(spent * whole))
                    standings[one.label] = search_of(one).lead()
                    leader = max(alive[:number], key=lambda entrant: standings[entrant.label].value)
                    _keep(best, leader, standings[leader.label])
                leading = standings[leader.label]
                behind = [
                    one
                    for one in alive
                    if self._is_comparable(one, budgets[one.label])
                    and leading.is_ahead_of(standings[one.label], max(1, len(alive) - 1))
                ]
                alive = [one for one in alive if one not in behind]
                for one in behind:
                    standing = standings[one.label]
                    given_up.append(Placed(one, standing, leading.lead_over(standing)))
                if leading.is_perfect:
                    break
            confirmed = [Placed(one, search_of(one).confirm().standing) for one in alive]
        confirmed.sort(key=lambda placed: -placed.standing.value)
        _keep(best, confirmed[0].entrant, confirmed[0].standing)
        return confirmed + sorted(given_up, key=lambda placed: -placed.standing.value)

    def _tunes_factors(self, entrant: Entrant) -> bool:
        return self.with_factors and entrant.method in method_table.amplified()

    def _is_comparable(self, entrant: Entrant, spent: int) -> bool:
        """Return whether all was tried: weights come first, and have half of the budget."""
        return not self._tunes_factors(entrant) or spent > self.budget_of(entrant) // 2

    def _tuning(self, entrant: Entrant, budget: int) -> MergeSearch:
        """Return the search of an entrant with a number of candidates."""
        both = self._tunes_factors(entrant)
        given = (
            entrant.recipe,
            self.tasks,
            self.output,
            replace(
                self.options,
                strategy=BOTH if both else WEIGHTS,
                max_evaluations=budget,
                share=self.budget_of(entrant),
            ),
            self.placement,
            self.score_command,
            self.engine,
            self.cluster,
            self.worst,
            self.guard_loss,
        )
        return WeightFactorSearch(*given) if both else WeightSearch(*given)


def _keep(best: Best, entrant: Entrant, standing: Standing) -> None:
    """Make an entrant the only one that something was found for."""
    best.clear()
    best[entrant.label] = standing.settings
