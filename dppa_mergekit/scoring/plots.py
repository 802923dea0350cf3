"""Bars of an evaluation."""

from __future__ import annotations

from pathlib import Path

from dppa_mergekit.report.plot_style import PANEL, color_of
from dppa_mergekit.scoring.tables import Evaluation


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
