"""Curves of a search: score against factor (paper Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dppa_mergekit.recipes import at_layer
from dppa_mergekit.report.plot_style import PANEL, color_of
from dppa_mergekit.search.candidate_search import SearchResult


def draw(found: Sequence[SearchResult], path: Path) -> None:
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
