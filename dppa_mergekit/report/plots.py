"""Curves: of a search, score against factor (paper Fig. 2); of AdaMerging, its course.

And bars of an evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from dppa_mergekit.adamerging.states import Learned
from dppa_mergekit.recipes import at_layer
from dppa_mergekit.scoring.tables import Evaluation
from dppa_mergekit.search.candidate_search import Tuned

PANEL = (4.2, 3.4)
"""Width and height of a panel in inches."""


COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
"""Told apart with any kind of colour vision (Okabe and Ito)."""


def color_of(number: int) -> str:
    """The color of a line or bar; they begin anew after the last."""
    return COLORS[number % len(COLORS)]


def is_installed() -> bool:
    """Whether the extra `plots` is there."""
    return find_spec("matplotlib") is not None


def draw(found: Sequence[Tuned], path: Path) -> None:
    """Write a PNG: of every factor that was varied, the other factors being those found."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * len(found), PANEL[1]), layout="constrained")
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for panel, each in zip(panels, found, strict=True):
        for number, (name, curve) in enumerate(each.curves.items()):
            (line,) = panel.plot(
                [factor for factor, _ in curve],
                [estimate.value for _, estimate in curve],
                marker="o",
                markersize=3,
                label=name,
                color=color_of(number),
            )
            panel.errorbar(
                [factor for factor, _ in curve],
                [estimate.value for _, estimate in curve],
                yerr=[estimate.error or 0.0 for _, estimate in curve],
                fmt="none",
                ecolor=line.get_color(),
                alpha=0.4,
            )
            panel.axvline(
                at_layer(each.factors[name], 0, 1),
                color=line.get_color(),
                linewidth=0.8,
                linestyle=":",
            )
        panel.set_title(each.domain)
        panel.set_xlabel("factor")
        if each.curves:
            panel.legend(fontsize="small")
    panels[0].set_ylabel("dev Domain-Ratio, %")
    figure.savefig(path, dpi=150)


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


def draw_evaluation(found: Evaluation, path: Path) -> None:
    """Write a PNG: a bar for the Domain-Ratio of every model and domain, with standard errors."""
    from matplotlib.figure import Figure

    number = len(found.models)
    width = max(PANEL[0], 0.5 + 0.3 * number * len(found.domains))
    figure = Figure(figsize=(width, PANEL[1] + 0.25 * number), layout="constrained")
    panel = figure.subplots()
    for place, model in enumerate(found.models):
        estimates = [found.domain_ratio(model, domain) for domain in found.domains]
        panel.bar(
            [
                domain + (place - (number - 1) / 2) * 0.8 / number
                for domain in range(len(estimates))
            ],
            [each.value for each in estimates],
            0.8 / number,
            yerr=[each.error or 0.0 for each in estimates],
            label=model,
            color=color_of(place),
            ecolor="grey",
        )
    panel.axhline(100, color="grey", linewidth=0.8, linestyle=":")
    panel.set_xticks(range(len(found.domains)), list(found.domains))
    panel.set_ylabel("Domain-Ratio, %")
    figure.legend(loc="outside lower left", fontsize="small")
    figure.savefig(path, dpi=150)
