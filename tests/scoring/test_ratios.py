"""Task-Ratios and Domain-Ratios, against the paper's numbers and resampling."""

import math

import numpy
import pytest
from scores import draw_scores

from dppa_mergekit.scoring.ratios import (
    Score,
    domain_ratio,
    estimate_domain_ratio,
    join_scores,
    ratio_difference,
)

FINE_TUNED = {"gsm8k": 0.5981, "math": 0.13}


@pytest.mark.parametrize(
    ("gsm8k", "math_", "printed"),
    # Paper, Table 1 at 90 %: magnitude, OWL, DARE.
    [(0.343442002, 0.0646, 53.41), (0.342683851, 0.0664, 54.09), (0.498104625, 0.0842, 73.44)],
)
def test_the_papers_domain_ratios(gsm8k: float, math_: float, printed: float) -> None:
    scores = {"gsm8k": Score(gsm8k), "math": Score(math_)}
    # The paper truncates its figures instead of rounding them.
    assert printed <= domain_ratio(scores, FINE_TUNED) < printed + 0.01


def test_the_error_of_a_ratio_is_what_resampling_finds() -> None:
    rng = numpy.random.default_rng(0)
    fine_tuned, rates = {"a": 0.9, "b": 0.6}, {"a": 0.7, "b": 0.3}
    ratios = [domain_ratio(draw_scores(rng, rates, 200), fine_tuned) for _ in range(3000)]
    errors = [
        estimate_domain_ratio(draw_scores(rng, rates, 200), fine_tuned).error for _ in range(300)
    ]
    assert numpy.mean([error for error in errors if error]) == pytest.approx(
        numpy.std(ratios), rel=0.07
    )


def test_the_error_of_a_difference_is_that_of_pairs() -> None:
    rng = numpy.random.default_rng(1)
    fine_tuned, found, errors = {"a": 1.0}, [], []
    for _ in range(2000):
        hard = rng.random(200)
        # The same items are hard for both; one model is a little better.
        left, right = (hard < 0.62).astype(float), (hard < 0.6).astype(float)
        right[:10] = rng.random(10) < 0.5
        estimate = ratio_difference({"a": Score.of(left)}, {"a": Score.of(right)}, fine_tuned)
        found.append(estimate.value)
        errors.append(estimate.error)
    apart = math.sqrt(2 * 0.6 * 0.4 / 200) * 100
    assert numpy.mean(errors) == pytest.approx(numpy.std(found), rel=0.12)
    assert numpy.mean(errors) < apart / 2


def test_a_task_at_zero_does_not_hide_the_others() -> None:
    fine_tuned = {"a": 1.0, "b": 1.0}
    zero = Score.of([0.0] * 10)
    low = {"a": Score.of([1.0] * 3 + [0.0] * 7), "b": zero}
    high = {"a": Score.of([1.0] * 8 + [0.0] * 2), "b": zero}
    assert domain_ratio(low, fine_tuned) == domain_ratio(high, fine_tuned) == 0
    assert ratio_difference(high, low, fine_tuned).value > 0


def test_scores_of_parts_are_joined() -> None:
    parts = [{"a": Score.of([1.0, 0.0])}, {"a": Score.of([1.0])}]
    assert join_scores(parts)["a"] == Score(2 / 3, (1.0, 0.0, 1.0))


def test_scores_as_a_whole_have_no_error() -> None:
    scores = {"gsm8k": Score(0.3), "math": Score(0.1)}
    assert estimate_domain_ratio(scores, FINE_TUNED).error is None
    assert ratio_difference(scores, scores, FINE_TUNED).error is None
