"""The paper's figures of Domain-Ratios: by the share that is kept, and by the factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from measurements import LABELS, LADDER, Group

from dppa_mergekit.report.plot_style import PANEL, color_of

KEPT = (90, 50, 20, 10, 5, 2)
"""Kept shares of the deltas, in percent, that are marked on the ladder's axis."""

Curve: TypeAlias = "tuple[str, Mapping[float, tuple[str, str]]]"
"""Label, and position on the horizontal axis -> section of the results and name of a recipe."""


def draw_ladder(group: Group, path: Path) -> None:
    """Write a PNG: the Domain-Ratio of each method by the share that is kept (Appendix A)."""
    curves = [
        (LABELS[method], {100.0 - rate: (section, f"{method}_{rate}") for rate in group.rates})
        for section, methods in (("pruned", LADDER), ("amplified", ("dare_dpa", "dppa")))
        for method in methods
    ]
    _draw(group, path, "kept, %", curves, halving=True)


def draw_factors(group: Group, path: Path) -> None:
    """Write a PNG: the Domain-Ratio by the factor of the 90 partition (Fig. 2); 1 is DP."""
    curves = []
    for rate, condition in ((90, " alone"), (80, ", the 80 partition at 1")):
        start = f"dppa_{rate}_at_"
        points = {
            float(name.removeprefix(start)): ("amplified", name)
            for name in group.recipe_names("amplified")
            if name.startswith(start)
        }
        in_order = sorted({1.0: ("pruned", f"dp_{rate}"), **points}.items())
        curves.append((f"pruned by {rate} %{condition}", dict(in_order)))
    _draw(group, path, "factor of the 90 partition", curves)


def _draw(
    group: Group, path: Path, label: str, curves: Sequence[Curve], halving: bool = False
) -> None:
    """Write a PNG with a panel for each domain, with means and their spread.

    Args:
        group: The subjects to average over.
        path: The PNG.
        label: Label of the horizontal axis.
        curves: Their points; those that were not measured are left out.
        halving: Whether the axis falls from left to right, on a logarithmic scale.
    """
    figure = Figure(figsize=(PANEL[0] * len(group.domains), PANEL[1]), layout="constrained")
    panels = figure.subplots(1, len(group.domains), squeeze=False, sharey=True)[0]
    for panel, domain in zip(panels, group.domains, strict=True):
        for number, (method, points) in enumerate(curves):
            measured = {
                position: group.domain_ratios(section, name, domain)
                for position, (section, name) in points.items()
                if name in group.recipe_names(section)
            }
            panel.errorbar(
                list(measured),
                [sample.mean for sample in measured.values()],
                yerr=[sample.spread for sample in measured.values()],
                color=color_of(number),
                marker="o",
                markersize=3,
                linewidth=1,
                elinewidth=0.5,
                label=method,
            )
        if halving:
            panel.set_xscale("log")
            panel.invert_xaxis()
            panel.set_xticks(KEPT, [str(share) for share in KEPT])
            panel.xaxis.set_minor_locator(NullLocator())
        panel.set_title(domain)
        panel.set_xlabel(label)
    panels[0].set_ylabel("test Domain-Ratio, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    figure.savefig(path, dpi=100)
