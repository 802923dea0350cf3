"""What is said of the states of a descent."""

from dppa_mergekit.adamerging.states import Evaluation, Learned, State, warnings_of
from dppa_mergekit.scoring.ratios import Estimate


def states(before: float, after: float, scores: tuple[float, float], weight: float) -> Learned:
    both = [
        State(
            step,
            [[of_model], [0.4]],
            ([], []),
            {"a": loss},
            Evaluation(score, Estimate(score), {}),
            0.0,
        )
        for step, loss, score, of_model in [
            (0, before, scores[0], 0.3),
            (9, after, scores[1], weight),
        ]
    ]
    return Learned({"math": weight, "law": 0.4}, both[1], both)


def test_warnings() -> None:
    assert warnings_of(states(1.1, 0.4, (50, 60), 0.2), is_entropy=True) == []
    (gone,) = warnings_of(states(1.1, 0.4, (50, 60), 0.001), is_entropy=False)
    assert "mean weight of math fell from 0.30 to 0.001" in gone
    (surer,) = warnings_of(states(1.1, 0.4, (60, 10), 0.2), is_entropy=True)
    assert "entropy fell from 1.10 to 0.40" in surer
