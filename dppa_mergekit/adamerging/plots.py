"""Plots of AdaMerging: the coefficients of every scope, and losses and dev scores by step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from dppa_mergekit.adamerging.coefficients import Row
from dppa_mergekit.adamerging.states import LearningResult
from dppa_mergekit.recipes.references import short_name
from dppa_mergekit.report.plot_style import PANEL, color_of
from dppa_mergekit.tensor_names import block_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_learning(result: LearningResult, path: Path) -> None:
    """Write a PNG with panels of coefficients, of losses and, if there are any, of dev scores."""
    from matplotlib.figure import Figure

    number = 2 if result.states[0].evaluation is None else 3
    figure = Figure(figsize=(PANEL[0] * number, PANEL[1]), layout="constrained")
    of_coefficients, of_losses, *of_scores = figure.subplots(1, number)
    _draw_coefficients(of_coefficients, result)
    _draw_losses(of_losses, result)
    for panel in of_scores:
        _draw_scores(panel, result)
    figure.savefig(path, dpi=150)


STYLES = ("-", "--", "-.", (0, (1, 1)))
"""The styles of a model's lines: weights and factors, one after the other."""


FEW = 40
"""The largest number of points that are joined by a line, and not by their means over blocks."""


def _draw_coefficients(panel: Axes, result: LearningResult) -> None:
    """Draw a line of coefficients over the scopes for every row, learned and at the start."""
    models = list(result.coefficients)
    names = list(dict.fromkeys(row.name for row in result.rows))
    first = result.states[0]
    many = max(len(row.start) for row in result.rows) > FEW
    for row, values, before in zip(
        result.rows, result.best.settled, first.coefficients, strict=True
    ):
        color = color_of(models.index(row.model))
        style = STYLES[names.index(row.name) % len(STYLES)]
        label = short_name(row.model) + (f", {row.name}" if len(names) > 1 else "")
        lines: list[tuple[Sequence[float], Sequence[float]]]
        lines = [(range(len(values)), values), (range(len(before)), before)]
        if many:
            panel.plot(values, ".", markersize=3, color=color, alpha=0.3)
            lines = [_means_over_blocks(row, given) for given in (values, before)]
        marker = None if many else "o"
        panel.plot(
            *lines[0], linestyle=style, marker=marker, markersize=3, color=color, label=label
        )
        panel.plot(*lines[1], color=color, linewidth=0.8, linestyle=":", alpha=0.6)
    panel.set_xlabel(_describe_scopes(result))
    panel.set_ylabel(names[0] if len(names) == 1 else "weights and factors")
    of_blocks = "lines: means over blocks; " if many else ""
    panel.set_title(f"{of_blocks}dotted: at the start", fontsize="small")
    panel.legend(fontsize="small")


def _means_over_blocks(row: Row, values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the mean place and the mean value of a row's scopes in each block."""
    of_blocks: dict[object, list[tuple[int, float]]] = {}
    for place, (scope, value) in enumerate(zip(row.start, values, strict=True)):
        block = block_of(scope) if isinstance(scope, str) else scope
        if block is not None:
            of_blocks.setdefault(block, []).append((place, value))
    points = [
        (mean(at for at, _ in found), mean(of for _, of in found)) for found in of_blocks.values()
    ]
    return [place for place, _ in points], [value for _, value in points]


def _describe_scopes(result: LearningResult) -> str:
    """Return the axis label of the scopes; empty where there is one."""
    scopes = max((list(row.start) for row in result.rows), key=len)
    if len(scopes) < 2:
        return ""
    word, rest = "block", "outside all blocks"
    if any(isinstance(scope, str) for scope in scopes):
        word, rest = "linear, layer by layer", "dense tensors"
    return f"{word}; last: {rest}" if None in scopes else word


def _draw_losses(panel: Axes, result: LearningResult) -> None:
    """Draw the loss of every domain over the steps, as a share of its loss at the start."""
    steps = [state.step for state in result.states]
    for index, (name, loss) in enumerate(result.states[0].losses.items()):
        course = [state.losses[name] / max(loss, 1e-6) for state in result.states]
        panel.plot(steps, course, marker="o", markersize=3, color=color_of(index), label=name)
    panel.set_xlabel("step")
    panel.set_ylabel("loss, relative to the start")
    panel.legend(fontsize="small")


def _draw_scores(panel: Axes, result: LearningResult) -> None:
    """Draw the dev scores over the steps, their mean and every domain."""
    evaluated = [
        (state.step, state.evaluation) for state in result.states if state.evaluation is not None
    ]
    steps = [step for step, _ in evaluated]
    panel.errorbar(
        steps,
        [score.estimate.value for _, score in evaluated],
        yerr=[score.estimate.error or 0.0 for _, score in evaluated],
        color="black",
        marker="o",
        markersize=3,
        label="mean",
    )
    for index, name in enumerate(evaluated[0][1].parts):
        panel.plot(
            steps,
            [score.parts[name].value for _, score in evaluated],
            color=color_of(index),
            linewidth=0.8,
            label=name,
        )
    panel.axvline(result.best.step, color="grey", linewidth=0.8, linestyle=":")
    panel.set_xlabel("step")
    panel.set_ylabel("dev Domain-Ratio, %")
    panel.legend(fontsize="small")
