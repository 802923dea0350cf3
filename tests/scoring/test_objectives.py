"""The objective of a merge and its errors, against the definition and resampling."""

import math

import numpy
import pytest
from scores import draw_scores

from dppa_mergekit.scoring.objectives import DomainObjective, MergeObjective
from dppa_mergekit.scoring.ratios import Score


def objective(worst: bool, loss: float = 0.1) -> MergeObjective:
    domains = {
        "first": DomainObjective({"a": 0.9, "b": 0.6}),
        "second": DomainObjective({"c": 0.5}),
    }
    return MergeObjective(domains, worst, {"g": 0.8}, loss)


@pytest.mark.parametrize("worst", [False, True])
def test_the_objective_of_a_merge(worst: bool) -> None:
    scores = {"a": Score(0.45), "b": Score(0.6), "c": Score(0.4), "g": Score(0.72)}
    first, second = 100 * math.sqrt(0.5 * 1.0), 100 * 0.8
    expected = min(first, second) if worst else (first + second) / 2
    whole = objective(worst)
    assert whole.exact(scores) == pytest.approx(expected)
    assert whole.estimate(scores).value == pytest.approx(expected)
    parts = {name: part.value for name, part in whole.parts(scores).items()}
    assert parts == pytest.approx({"first": first, "second": second, "guard": 90.0})
    # The guard may lose 10 %, and does. No gain elsewhere makes up for a larger loss.
    lost = {**scores, "a": Score(0.9), "c": Score(0.5), "g": Score(0.71)}
    assert whole.exact(lost) < whole.exact(scores)
    assert whole.estimate(lost).value > whole.estimate(scores).value
    assert whole.difference(scores, lost).value > 0


def test_the_errors_of_a_merge_are_what_resampling_finds() -> None:
    rng = numpy.random.default_rng(1)
    rates = {"a": 0.7, "b": 0.4, "c": 0.35, "g": 0.8}
    whole = objective(False, loss=1.0)
    drawn = [draw_scores(rng, rates, 150) for _ in range(3000)]
    ratios = [whole.exact(scores) for scores in drawn]
    errors = [whole.estimate(scores).error for scores in drawn[:300]]
    assert numpy.mean([error for error in errors if error]) == pytest.approx(
        numpy.std(ratios), rel=0.07
    )
    pairs = [
        whole.difference(left, right) for left, right in zip(drawn[::2], drawn[1::2], strict=True)
    ]
    assert numpy.mean([pair.error for pair in pairs if pair.error]) == pytest.approx(
        numpy.std([pair.value for pair in pairs]), rel=0.07
    )
