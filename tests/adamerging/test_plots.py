"""The plot of a descent."""

from pathlib import Path

import matplotlib.image
import pytest
from matplotlib.figure import Figure

from dppa_mergekit.adamerging.coefficients import Row
from dppa_mergekit.adamerging.plots import draw_learning
from dppa_mergekit.adamerging.states import LearningResult, State
from dppa_mergekit.recipes.recipe import Recipe


@pytest.mark.parametrize(("blocks", "points"), [(2, 9), (12, 12)])
def test_many_linears_are_joined_by_block(
    blocks: int, points: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few linears are joined by a line, with the dense tensors; of many, the means over blocks."""
    linears = [f"model.layers.{at // 4}.mlp.{at % 4}.weight" for at in range(4 * blocks)]
    row = Row("math", "weight", {**dict.fromkeys(linears, 0.3), None: 0.3})
    values = [float(at // 4) for at in range(4 * blocks)] + [0.5]
    states = [State(0, [values], ([], []), {"math": 1.0}, None, 0.0)]
    learned = {"math": {"weight": dict(zip(row.start, values, strict=True))}}
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *given, **named: (drawn.append(figure), save(figure, *given, **named)),
    )
    draw_learning(LearningResult(Recipe({}), [row], learned, states[0], states), tmp_path / "a.png")
    assert matplotlib.image.imread(tmp_path / "a.png").std() > 0
    panel = drawn[0].axes[0]
    (line,) = [curve for curve in panel.lines if curve.get_label() == "math"]
    assert len(line.get_ydata()) == points
    if blocks == 12:
        assert list(line.get_ydata()) == [float(block) for block in range(12)]
        assert list(line.get_xdata()) == [4 * block + 1.5 for block in range(12)]
