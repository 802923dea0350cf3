"""Random scores of tasks whose items are right with known probabilities."""

from collections.abc import Mapping

import numpy

from dppa_mergekit.scoring.ratios import Score


def draw_scores(
    rng: numpy.random.Generator, rates: Mapping[str, float], number: int
) -> dict[str, Score]:
    """Draw scores of so many items for each task; rates: task -> probability of a right item."""
    return {
        task: Score.of((rng.random(number) < rate).astype(float)) for task, rate in rates.items()
    }
