"""The evaluations of one search: read from the journal, or made and written to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from dppa_mergekit.scoring.ratios import Score, Scores
from dppa_mergekit.search.candidates import Proposal
from dppa_mergekit.storage.journal import Entry, Journal

FINE_TUNED = "dense"
"""In a journal, the candidate of the fine-tuned models; of guard tasks, of the base model."""

PROPOSAL = "proposal"
"""In a journal, the candidate of the teacher's proposal."""

ALL = -1
"""In a journal, the fold of all items."""


@dataclass
class Evaluations:
    """The evaluations of one search.

    Attributes:
        domain: The domain of the search, or MERGE.
        journal: The journal that has them; None to keep none.
        seconds: Time that they took, in this run and in earlier ones.
    """

    domain: str
    journal: Journal | None
    seconds: float = field(default=0.0, init=False)
    _known: dict[tuple[str, int], Entry] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Read what the journal has of this search."""
        for entry in () if self.journal is None else self.journal.entries:
            if entry["domain"] == self.domain:
                self._known[str(entry["candidate"]), int(str(entry["fold"]))] = entry

    def scores(
        self,
        wanted: Sequence[tuple[str, int]],
        evaluate: Callable[[Sequence[int]], Iterator[Scores]],
    ) -> Iterator[Scores]:
        """Yield the scores of candidates in order, evaluating those that the journal lacks.

        Args:
            wanted: Candidates, as the journal writes them, and folds.
            evaluate: Given indices in `wanted`, yields their scores.
        """
        fresh = evaluate([index for index, pair in enumerate(wanted) if pair not in self._known])
        begun = time.perf_counter()
        for candidate, fold in wanted:
            entry = self._known.get((candidate, fold))
            if entry is None:
                scores = next(fresh)
                entry = {
                    "domain": self.domain,
                    "candidate": candidate,
                    "fold": fold,
                    "scores": {task: [score.value, *score.items] for task, score in scores.items()},
                    "errors": {task: score.error for task, score in scores.items()},
                    "seconds": round(time.perf_counter() - begun, 3),
                }
                self._add(entry)
            begun = time.perf_counter()
            self.seconds += float(str(entry["seconds"]))
            held = entry["scores"]
            assert isinstance(held, dict)
            yield {task: Score(value, tuple(items)) for task, (value, *items) in held.items()}

    def proposal(self, names: Sequence[str], propose: Callable[[], Proposal]) -> Proposal:
        """Return the teacher's proposal, asking the teacher where the journal lacks it.

        Args:
            names: The factors that it is for, in order.
            propose: Asks the teacher.
        """
        entry = self._known.get((PROPOSAL, ALL))
        if entry is None:
            begun = time.perf_counter()
            found = propose()
            entry = {
                "domain": self.domain,
                "candidate": PROPOSAL,
                "fold": ALL,
                "factors": {name: found[name] for name in names},
                "seconds": round(time.perf_counter() - begun, 3),
            }
            self._add(entry)
        self.seconds += float(str(entry["seconds"]))
        factors = entry["factors"]
        assert isinstance(factors, dict)
        return factors

    def _add(self, entry: Entry) -> None:
        self._known[str(entry["candidate"]), int(str(entry["fold"]))] = entry
        if self.journal is not None:
            self.journal.add(entry)


def has_fine_tuned_scores(journal: Journal, domain: str) -> bool:
    """Return whether a journal has the scores of a domain's fine-tuned model."""
    return any(
        (entry["domain"], entry["candidate"]) == (domain, FINE_TUNED) for entry in journal.entries
    )
