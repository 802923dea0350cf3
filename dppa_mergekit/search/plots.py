"""Curves of a search: Domain-Ratio against factor (paper Fig. 2) or weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dppa_mergekit.report.plot_style import PANEL, color_of
from dppa_mergekit.search.candidates import one_number
from dppa_mergekit.search.results import SearchResult
from dppa_mergekit.search.strategies import BOTH, WEIGHTS

TUNED = {WEIGHTS: "weight", BOTH: "weight or factor"}
"""Strategy -> what it tunes; all others tune factors."""


def draw(results: Sequence[SearchResult], strategy: str, path: Path) -> None:
    """Write a PNG with a panel for each result and a curve for each factor or weight.

    Along a curve the others are those of the result; a dotted line marks the result.

    Args:
        results: The results of a search.
        strategy: The name of its strategy, which tells what was tuned.
        path: The file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * len(results), PANEL[1]), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for panel, result in zip(panels, results, strict=True):
        for number, (name, curve) in enumerate(result.curves.items()):
            values = [value for value, _ in curve]
            ratios = [estimate.value for _, estimate in curve]
            (line,) = panel.plot(
                values, ratios, marker="o", markersize=3, label=name, color=color_of(number)
            )
            panel.errorbar(
                values,
                ratios,
                yerr=[estimate.error or 0.0 for _, estimate in curve],
                fmt="none",
                ecolor=line.get_color(),
                alpha=0.4,
            )
            panel.axvline(
                one_number(result.factors[name]),
                color=line.get_color(),
                linewidth=0.8,
                linestyle=":",
            )
        panel.set_title(result.domain)
        panel.set_xlabel(TUNED.get(strategy, "factor"))
        if result.curves:
            panel.legend(fontsize="small")
    panels[0].set_ylabel("dev Domain-Ratio, %")
    figure.savefig(path, dpi=150)
