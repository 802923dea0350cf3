"""What is said of the states of a descent."""

from dppa_mergekit.adamerging.coefficients import Row
from dppa_mergekit.adamerging.states import DevScore, LearningResult, State, warnings_about
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.ratios import Estimate


def states(
    before: float, after: float, scores: tuple[float, float], weight: float
) -> LearningResult:
    both = [
        State(
            step,
            [[of_model], [0.4]],
            ([], []),
            {"a": loss},
            DevScore(score, Estimate(score), {}),
            0.0,
        )
        for step, loss, score, of_model in [
            (0, before, scores[0], 0.3),
            (9, after, scores[1], weight),
        ]
    ]
    rows = [Row(model, "weight", {None: 0.3}) for model in ("math", "law")]
    learned = {"math": {"weight": weight}, "law": {"weight": 0.4}}
    return LearningResult(Recipe({}), rows, learned, both[1], both)


def test_warnings() -> None:
    assert warnings_about(states(1.1, 0.4, (50, 60), 0.2), is_entropy=True) == []
    (gone,) = warnings_about(states(1.1, 0.4, (50, 60), 0.001), is_entropy=False)
    assert "mean weight of math fell from 0.30 to 0.001" in gone
    (surer,) = warnings_about(states(1.1, 0.4, (60, 10), 0.2), is_entropy=True)
    assert "entropy fell from 1.10 to 0.40" in surer
