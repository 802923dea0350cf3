"""Which quantity of the deltas tells which pruning wins: a figure and a table of all settings.

    python examples/paper/rule.py

In:  the tables in `tables/` of all settings that were measured by a plan.
Out: `figures/rule.png` and `tables/rule.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from quotes import HERE, Quotes, read_tables
from scipy.stats import spearmanr

from dppa_mergekit.analysis.evidence import RESCALED, WOULD_DO, bound_noise
from dppa_mergekit.report.markdown_tables import table
from dppa_mergekit.report.plot_style import PANEL, color_of

SETTINGS = ("smollm2_simple", "smollm2_hard", "miniature")
"""The files of the settings' tables."""

CROSSING, DELTAS = "Where methods cross", "Tables 4 and 8: the deltas"
LINEARS = "DARE, linears alone"


@dataclass(frozen=True)
class Pruning:
    """A model that was pruned to a density; shares of its skill are in percent.

    Attributes:
        setting: The file of its tables.
        noise: The noise of DARE's rescaling, as a share of the weights' deviation.
        relative: The deviation of its deltas, as a share of the weights' deviation.
        density: What was kept of the deltas.
        dare: What `dare_linear` keeps.
        linears: What DARE on the linears alone keeps.
        dp: What DP keeps.
    """

    setting: str
    noise: float
    relative: float
    density: float
    dare: float
    linears: float
    dp: float

    @property
    def lead(self) -> float:
        """How far DARE on the linears is ahead of DP, in points."""
        return self.linears - self.dp


def list_prunings(quotes: Quotes, setting: str) -> list[Pruning]:
    """Return all models and densities of a setting."""
    found = []
    for row in quotes.tables[f"{setting}: {CROSSING}"].rows:
        name = ", ".join(row[:2])
        rate = float(row[1].removesuffix(" %"))
        noise, dare, linears, dp = (
            quotes.cell(f"{setting}: {CROSSING}", name, column).value
            for column in ("noise", "DARE", LINEARS, "DP")
        )
        relative = quotes.cell(f"{setting}: {DELTAS}", row[0], "relative").value
        found.append(Pruning(setting, noise, relative, 1 - rate / 100, dare, linears, dp))
    return found


def correlate(values: Iterable[float], others: Iterable[float]) -> float:
    """Return Spearman's rank correlation of two quantities."""
    return float(spearmanr(list(values), list(others)).statistic)


def draw(prunings: Sequence[Pruning], path: Path) -> None:
    """Write a PNG: what DARE keeps, and its lead over DP, by the noise of its rescaling."""
    figure = Figure(figsize=(2 * PANEL[0], 1.15 * PANEL[1]), layout="constrained")
    kept, lead = figure.subplots(1, 2)
    for panel in (kept, lead):
        panel.set_xscale("log")
        panel.set_xlabel("noise / deviation of the weights")
    kept.set_ylabel("kept, %")
    lead.set_ylabel("points")
    kept.set_title("dare_linear (crosses) and dare_dpa (dots)", fontsize="medium")
    lead.set_title("DARE on linears less DP", fontsize="medium")
    for number, setting in enumerate(dict.fromkeys(each.setting for each in prunings)):
        color, label = color_of(number), setting.replace("_", " ").replace("smollm2", "SmolLM2")
        own = [each for each in prunings if each.setting == setting]
        noise = [each.noise for each in own]
        kept.scatter(noise, [each.dare for each in own], 16, color, marker="x")
        kept.scatter(noise, [each.linears for each in own], 16, color, marker="o")
        lead.scatter(noise, [each.lead for each in own], 16, color, marker="o", label=label)
    _mark_bounds(kept)
    lead.axhline(0, color="black", linewidth=0.5)
    figure.legend(*lead.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=100)


def _mark_bounds(panel: Axes) -> None:
    """Mark the noise up to which each of DARE's methods would do."""
    panel.axhline(WOULD_DO, color="black", linewidth=0.5)
    for method in RESCALED:
        largest, _ = bound_noise(method)
        panel.axvline(largest, color="black", linewidth=0.5, linestyle=":")


def format_table(prunings: Sequence[Pruning]) -> str:
    """Return the rank correlations of quantities with what is kept, and with DARE's lead."""
    rows = [
        [
            quantity,
            *(
                f"{correlate(values, (getattr(each, kept) for each in prunings)):.2f}"
                for kept in ("dare", "linears", "dp", "lead")
            ),
        ]
        for quantity, values in (
            ("noise of the rescaling", [each.noise for each in prunings]),
            ("deviation of the deltas", [each.relative for each in prunings]),
            ("density", [each.density for each in prunings]),
        )
    ]
    head = ["quantity", "DARE", LINEARS, "DP", "DARE on linears less DP"]
    return (
        "# Which quantity tells which method wins\n\n"
        f"`python examples/paper/rule.py`. Spearman's rank correlations with what each method "
        f"keeps, over {len(prunings)} models and densities.\n\n"
        f"## One model\n\n{table(head, rows)}"
    )


def read_results() -> list[Pruning]:
    """Return what the tables have of all settings."""
    quotes = Quotes(read_tables(HERE / "tables"))
    return [each for setting in SETTINGS for each in list_prunings(quotes, setting)]


def main() -> None:
    """Draw the figure and write the table."""
    prunings = read_results()
    draw(prunings, HERE / "figures" / "rule.png")
    (HERE / "tables" / "rule.md").write_text(format_table(prunings), encoding="utf-8")


if __name__ == "__main__":
    main()
