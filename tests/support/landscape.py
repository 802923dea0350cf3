"""Trials without a model: the quality of factors is a function, and items are right by chance."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from dppa_mergekit.scoring.ratios import Items, Score, Scores
from dppa_mergekit.search.candidate_search import CandidateSearch
from dppa_mergekit.search.candidates import Proposal
from dppa_mergekit.search.options import Options
from dppa_mergekit.search.trials import OneByOne
from dppa_mergekit.storage.journal import open_journal

Quality = Callable[..., float]


class Landscape(OneByOne):
    """An item is right if the quality of the factors is above its threshold, apart from noise.

    `calls` has (factors, number of items) of every evaluation.
    """

    def __init__(
        self,
        quality: Quality,
        names: Sequence[str] = ("amplify_90", "amplify_80"),
        items: int = 400,
        noise: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        self.quality, self.names = quality, list(names)
        self.noise, self.seconds = noise, seconds
        random = Random(5)
        self.thresholds = [random.random() for _ in range(items)]
        self.calls: list[tuple[tuple[float, ...], int]] = []

    def score_fine_tuned(self, items: Items) -> Scores:
        return {task: Score.of([1.0] * len(chosen)) for task, chosen in items.items()}

    def parameters(self) -> list[str]:
        return self.names

    def score(self, settings: Mapping[str, float], items: Items) -> Scores:
        time.sleep(self.seconds)
        values = tuple(settings.values())
        scores = {}
        for task, chosen in items.items():
            self.calls.append((values, len(chosen)))
            right = []
            for item in chosen:
                luck = self.noise * Random(f"{values} {item}").gauss(0, 1)
                right.append(float(self.thresholds[item] < self.quality(*values) + luck))
            scores[task] = Score.of(right)
        return scores


class TeachingLandscape(Landscape):
    """A landscape whose teacher proposes 1.5 for every factor."""

    def propose(self, items: Items, low: float, high: float, seed: int) -> Proposal:
        return {name: [1.5] for name in self.names}


def hill(*best: float) -> Quality:
    """The best factors, around which quality falls as a square."""
    return lambda *factors: 0.9 - sum((x - y) ** 2 for x, y in zip(factors, best, strict=True)) / 4


def main(journal: Path) -> None:
    """Search a hill with a journal, slowly enough to be killed; print the result."""
    trials = Landscape(hill(1.7, 1.3), noise=0.05, seconds=0.01)
    with open_journal(journal, {"recipe": "a hill"}) as held:
        items = {"a": len(trials.thresholds)}
        found = CandidateSearch("math", "./math", items, trials, Options(), held).run()
    print(found.factors, found.before, found.after, found.confirmed, found.evaluations)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
