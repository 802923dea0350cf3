"""Curves of AdaMerging: weights block by block, losses and dev scores over the steps."""

from __future__ import annotations

from pathlib import Path

from dppa_mergekit.adamerging.states import Learned
from dppa_mergekit.report.plot_style import PANEL, color_of


def draw_learning(found: Learned, path: Path) -> None:
    """Write a PNG: the weights block by block, and losses and dev score over the steps."""
    from matplotlib.figure import Figure

    first, states = found.states[0], found.states
    is_evaluated = first.evaluation is not None
    number = 3 if is_evaluated else 2
    figure = Figure(figsize=(PANEL[0] * number, PANEL[1]), layout="constrained")
    of_weights, of_losses, *of_scores = figure.subplots(1, number)
    rows = zip(found.weights, found.best.settled, first.weights, strict=True)
    for place, (model, row, before) in enumerate(rows):
        color = color_of(place)
        of_weights.plot(row, marker="o", markersize=3, color=color, label=Path(model).name)
        of_weights.plot(before, color=color, linewidth=0.8, linestyle=":")
    of_weights.set_xlabel("block; last: outside all blocks" if len(first.weights[0]) > 1 else "")
    of_weights.set_ylabel("weight; dotted: at the start")
    of_weights.legend(fontsize="small")
    for place, (name, loss) in enumerate(first.losses.items()):
        course = [state.losses[name] / max(loss, 1e-6) for state in states]
        steps = [state.step for state in states]
        of_losses.plot(steps, course, marker="o", markersize=3, color=color_of(place), label=name)
    of_losses.set_xlabel("step")
    of_losses.set_ylabel("loss, of that at the start")
    of_losses.legend(fontsize="small")
    for panel in of_scores:
        evaluated = [(each.step, each.evaluation) for each in states if each.evaluation is not None]
        panel.errorbar(
            [step for step, _ in evaluated],
            [each.estimate.value for _, each in evaluated],
            yerr=[each.estimate.error or 0.0 for _, each in evaluated],
            color="black",
            marker="o",
            markersize=3,
            label="mean",
        )
        for place, name in enumerate(evaluated[0][1].parts):
            panel.plot(
                [step for step, _ in evaluated],
                [each.parts[name].value for _, each in evaluated],
                color=color_of(place),
                linewidth=0.8,
                label=name,
            )
        panel.axvline(found.best.step, color="grey", linewidth=0.8, linestyle=":")
        panel.set_xlabel("step")
        panel.set_ylabel("dev Domain-Ratio, %")
        panel.legend(fontsize="small")
    figure.savefig(path, dpi=150)
