"""What the plot and the summary of a search say about what was tuned."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from dppa_mergekit.scoring.ratios import Estimate
from dppa_mergekit.search.plots import draw
from dppa_mergekit.search.results import SearchResult
from dppa_mergekit.search.strategies import BOTH, MERGE_FACTORS, WEIGHTS
from dppa_mergekit.search.summary import summary

BEFORE, AFTER = Estimate(80.0, 2.0), Estimate(90.0, 1.5)


def result(**settings: float) -> SearchResult:
    return SearchResult(
        domain="merge",
        model="./base",
        factors=settings,
        fine_tuned={"a": 0.8},
        before=BEFORE,
        after=AFTER,
        confirmed=(BEFORE, AFTER),
        evaluations=9,
        seconds=1.0,
        parts={},
        lost=0.0,
        curves={name: [(1.0, BEFORE), (value, AFTER)] for name, value in settings.items()},
    )


@pytest.mark.parametrize(
    ("strategy", "name", "label", "before"),
    [
        ("joint", "amplify_90", "factor", "factors 1"),
        (WEIGHTS, "./math", "weight", "the recipe's merge"),
        (MERGE_FACTORS, "./math amplify_90", "factor", "the recipe's merge"),
        (BOTH, "./math", "weight or factor", "the recipe's merge"),
    ],
)
def test_what_was_tuned_is_named(
    strategy: str,
    name: str,
    label: str,
    before: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A domain may be named merge, too: the strategy tells, and not the domain.
    found = [result(**{name: 1.4})]
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw(found, strategy, tmp_path / "search.png")
    assert drawn[0].axes[0].get_xlabel() == label
    text = summary(found, strategy)
    assert f"'before' is {before}, 'tuned' is the result." in text
    assert "| ./math " in text or "| amplify_90 |" in text
