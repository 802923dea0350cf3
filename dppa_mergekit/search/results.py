"""The result of a search, and how its best candidate stands among others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

from dppa_mergekit.scoring.objectives import DEVIATIONS, Objective
from dppa_mergekit.scoring.ratios import Estimate, Scores
from dppa_mergekit.search.candidates import Settings

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


@dataclass(frozen=True)
class Standing:
    """How the best candidate of a search stands.

    Attributes:
        settings: Its factors or weights.
        scores: Its scores on the items that are compared.
        objective: What candidates are compared by.
        evaluations: Number of candidates scored so far.
        seconds: Time that all evaluations took.
        is_perfect: Whether a candidate is right on every choosing item.
    """

    settings: Settings
    scores: Scores
    objective: Objective
    evaluations: int
    seconds: float
    is_perfect: bool

    @property
    def value(self) -> float:
        """The smoothed objective, by which searches are compared."""
        return self.objective.smoothed(self.scores)

    @property
    def items(self) -> int:
        """The number of items that are compared; 0 where tasks are scored as a whole."""
        return sum(len(score.items) for score in self.scores.values())

    @property
    def lost(self) -> float:
        """The share of guard scores lost beyond what is allowed."""
        return self.objective.lost(self.scores)

    def lead_over(self, other: Standing) -> Estimate:
        """Return the Domain-Ratio minus that of another, on the same items."""
        return self.objective.shown_difference(self.scores, other.scores)

    def is_ahead_of(self, other: Standing, rivals: int = 1) -> bool:
        """Return whether it is better than another, guards included, by more than chance allows.

        Args:
            other: How the other one stands, on the same items.
            rivals: The number of those of which it is the best, beside itself. The more there are,
                the farther chance puts it ahead, and the larger the lead must be (Bonferroni).
        """
        lead = self.objective.difference(self.scores, other.scores)
        return lead.error is not None and lead.value > _deviations(rivals) * lead.error


def _deviations(rivals: int) -> float:
    """Return how many standard errors a lead must have.

    By chance, any of `rivals` leads then exceeds it no more often than a single lead exceeds
    DEVIATIONS.
    """
    return -NormalDist().inv_cdf(NormalDist().cdf(-DEVIATIONS) / rivals)


@dataclass(frozen=True)
class Confirmed:
    """The result of a search, and how it stands on all items."""

    result: SearchResult
    standing: Standing
