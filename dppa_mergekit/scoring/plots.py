"""The bar chart of an evaluation."""

from __future__ import annotations

from pathlib import Path

from dppa_mergekit.report.plot_style import PANEL, color_of
from dppa_mergekit.scoring.tables import Evaluation

GROUP_WIDTH = 0.8
"""Width of the bars of one domain together; the distance between domains is 1."""


def draw_evaluation(found: Evaluation, path: Path) -> None:
    """Write a PNG with one bar for each Domain-Ratio of each model, with standard errors."""
    from matplotlib.figure import Figure

    number = len(found.models)
    width = max(PANEL[0], 0.5 + 0.3 * number * len(found.domains))
    figure = Figure(figsize=(width, PANEL[1] + 0.25 * number), layout="constrained")
    panel = figure.subplots()
    for index, model in enumerate(found.models):
        estimates = [found.domain_ratio(model, domain) for domain in found.domains]
        offset = (index - (number - 1) / 2) * GROUP_WIDTH / number
        panel.bar(
            [domain + offset for domain in range(len(estimates))],
            [estimate.value for estimate in estimates],
            GROUP_WIDTH / number,
            yerr=[estimate.error or 0.0 for estimate in estimates],
            label=model,
            color=color_of(index),
            ecolor="grey",
        )
    panel.axhline(100, color="grey", linewidth=0.8, linestyle=":")
    panel.set_xticks(range(len(found.domains)), list(found.domains))
    panel.set_ylabel("Domain-Ratio, %")
    figure.legend(loc="outside lower left", fontsize="small")
    figure.savefig(path, dpi=150)
