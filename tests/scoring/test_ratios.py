"""Ratios and their errors, against the paper's numbers and resampling."""

import math

import numpy
import pytest

from dppa_mergekit.scoring.ratios import (
    DomainObjective,
    MergeObjective,
    Score,
    difference,
    domain_ratio,
    joined,
    ratio_estimate,
)

DENSE = {"gsm8k": 0.5981, "math": 0.13}


@pytest.mark.parametrize(
    ("gsm8k", "math_", "printed"),
    # Paper, Table 1 at 90 %: magnitude, OWL, DARE.
    [(0.343442002, 0.0646, 53.41), (0.342683851, 0.0664, 54.09), (0.498104625, 0.0842, 73.44)],
)
def test_the_papers_domain_ratios(gsm8k: float, math_: float, printed: float) -> None:
    scores = {"gsm8k": Score(gsm8k), "math": Score(math_)}
    # Its figures are cut off, not rounded.
    assert printed <= domain_ratio(scores, DENSE) < printed + 0.01


def draws(rng: numpy.random.Generator, rates: dict[str, float], number: int) -> dict[str, Score]:
    return {
        task: Score.of((rng.random(number) < rate).astype(float)) for task, rate in rates.items()
    }


def test_the_error_of_a_ratio_is_what_resampling_finds() -> None:
    rng = numpy.random.default_rng(0)
    dense, rates = {"a": 0.9, "b": 0.6}, {"a": 0.7, "b": 0.3}
    ratios = [domain_ratio(draws(rng, rates, 200), dense) for _ in range(3000)]
    errors = [ratio_estimate(draws(rng, rates, 200), dense).error for _ in range(300)]
    assert numpy.mean([error for error in errors if error]) == pytest.approx(
        numpy.std(ratios), rel=0.07
    )


def test_the_error_of_a_difference_is_that_of_pairs() -> None:
    rng = numpy.random.default_rng(1)
    dense, found, errors = {"a": 1.0}, [], []
    for _ in range(2000):
        hard = rng.random(200)
        # The same items are hard for both; one model is a little better.
        left, right = (hard < 0.62).astype(float), (hard < 0.6).astype(float)
        right[:10] = rng.random(10) < 0.5
        each = difference({"a": Score.of(left)}, {"a": Score.of(right)}, dense)
        found.append(each.value)
        errors.append(each.error)
    apart = math.sqrt(2 * 0.6 * 0.4 / 200) * 100
    assert numpy.mean(errors) == pytest.approx(numpy.std(found), rel=0.12)
    assert numpy.mean(errors) < apart / 2


def test_a_task_at_zero_does_not_hide_the_others() -> None:
    dense = {"a": 1.0, "b": 1.0}
    zero = Score.of([0.0] * 10)
    low = {"a": Score.of([1.0] * 3 + [0.0] * 7), "b": zero}
    high = {"a": Score.of([1.0] * 8 + [0.0] * 2), "b": zero}
    assert domain_ratio(low, dense) == domain_ratio(high, dense) == 0
    assert difference(high, low, dense).value > 0


def test_joined_items() -> None:
    parts = [{"a": Score.of([1.0, 0.0])}, {"a": Score.of([1.0])}]
    assert joined(parts)["a"] == Score(2 / 3, (1.0, 0.0, 1.0))


def test_scores_as_a_whole_have_no_error() -> None:
    scores = {"gsm8k": Score(0.3), "math": Score(0.1)}
    assert ratio_estimate(scores, DENSE).error is None
    assert difference(scores, scores, DENSE).error is None


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
    parts = {name: each.value for name, each in whole.parts(scores).items()}
    assert parts == pytest.approx({"first": first, "second": second, "guard": 90.0})
    # The guard has lost 10 %, as it may; of less than that, nothing makes up for it.
    lost = {**scores, "a": Score(0.9), "c": Score(0.5), "g": Score(0.71)}
    assert whole.exact(lost) < whole.exact(scores)
    assert whole.estimate(lost).value > whole.estimate(scores).value
    assert whole.difference(scores, lost).value > 0


def test_the_errors_of_a_merge_are_what_resampling_finds() -> None:
    rng = numpy.random.default_rng(1)
    rates = {"a": 0.7, "b": 0.4, "c": 0.35, "g": 0.8}
    whole = objective(False, loss=1.0)
    drawn = [draws(rng, rates, 150) for _ in range(3000)]
    ratios = [whole.exact(each) for each in drawn]
    errors = [whole.estimate(each).error for each in drawn[:300]]
    assert numpy.mean([error for error in errors if error]) == pytest.approx(
        numpy.std(ratios), rel=0.07
    )
    pairs = [whole.difference(x, y) for x, y in zip(drawn[::2], drawn[1::2], strict=True)]
    assert numpy.mean([pair.error for pair in pairs if pair.error]) == pytest.approx(
        numpy.std([pair.value for pair in pairs]), rel=0.07
    )
