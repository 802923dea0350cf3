"""How a search runs: its strategy, its budget and its range."""

from __future__ import annotations

from dataclasses import dataclass

from dppa_mergekit.errors import ParameterError
from dppa_mergekit.search.strategies import STRATEGIES


@dataclass(frozen=True)
class Options:
    """How to search.

    Attributes:
        strategy: The name of a strategy in STRATEGIES.
        max_evaluations: Number of candidates that one search may score, at least 1.
        patience: Steps in a row without gain after which the paper's climb ends, at least 1.
        low: The least factor or weight.
        high: The largest factor or weight.
        downwards: Whether the paper's climb lowers factors: those of random partitions, whose
            deltas were divided by the density.
        seed: Seed of the order in which items are dealt out.
        share: The number of candidates in the last round, where a search is made in rounds, each
            with a larger number; 0 for `max_evaluations`.
        per_block: Whether the teacher proposes factors for each block. Candidates then lie on the
            way from factors 1 to its proposal.

    Raises:
        ParameterError: There is no such strategy, `max_evaluations` or `patience` is below 1, or
            the range is empty.

    Example:
        >>> from dppa_mergekit import Options
        >>> Options(max_evaluations=20, high=2.0).strategy
        'joint'
    """

    strategy: str = "joint"
    max_evaluations: int = 60
    patience: int = 1
    low: float = 0.2
    high: float = 3.0
    downwards: bool = False
    seed: int = 0
    per_block: bool = False
    share: int = 0

    def __post_init__(self) -> None:
        """Raise ParameterError for a value that is not allowed."""
        if self.strategy not in STRATEGIES:
            raise ParameterError(
                f"strategy is {self.strategy!r}; allowed are {', '.join(STRATEGIES)}."
            )
        for name, number in (
            ("max_evaluations", self.max_evaluations),
            ("patience", self.patience),
        ):
            if number < 1:
                raise ParameterError(f"{name} is {number}; allowed is 1 or more.")
        if not self.low <= self.high:
            raise ParameterError(
                f"low is {self.low:g} and high is {self.high:g}; allowed is a range from less to "
                f"more."
            )
