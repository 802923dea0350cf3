"""Plots of AdaMerging: the coefficients of every block, and losses and dev scores by step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit.adamerging.states import LearningResult
from dppa_mergekit.recipes.references import short_name
from dppa_mergekit.report.plot_style import PANEL, color_of

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


def _draw_coefficients(panel: Axes, result: LearningResult) -> None:
    """Draw a line of coefficients over the scopes for every row, learned and at the start."""
    models = list(result.coefficients)
    names = list(dict.fromkeys(row.name for row in result.rows))
    first = result.states[0]
    for row, values, before in zip(
        result.rows, result.best.settled, first.coefficients, strict=True
    ):
        color = color_of(models.index(row.model))
        style = STYLES[names.index(row.name) % len(STYLES)]
        label = short_name(row.model) + (f", {row.name}" if len(names) > 1 else "")
        marker = "o" if len(values) <= FEW else None
        panel.plot(values, linestyle=style, marker=marker, markersize=3, color=color, label=label)
        panel.plot(before, color=color, linewidth=0.8, linestyle=":", alpha=0.6)
    panel.set_xlabel(_describe_scopes(result))
    panel.set_ylabel(f"{', '.join(names)}; dotted: at the start")
    panel.legend(fontsize="small")


FEW = 40
"""The largest number of points of a line that are drawn as dots."""


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
