"""Which quantity of the deltas tells which method wins: a figure and a table of all settings.

    python examples/paper/rule.py

In:  the tables in `tables/` of all settings that were measured by a plan.
Out: `figures/rule.png` and `tables/rule.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from quotes import HERE, Quotes, Table, read_tables
from scipy.stats import spearmanr

from dppa_mergekit.analysis.evidence import RESCALED, WOULD_DO, bound_noise
from dppa_mergekit.report.markdown_tables import table
from dppa_mergekit.report.plot_style import PANEL, color_of

SETTINGS = ("smollm2_simple", "smollm2_hard", "miniature", "quickstart", "six_tiny_experts")
"""The files of the settings' tables."""

PAIRED = "six_tiny_experts"
"""The setting whose models are also merged two by two: many merges of one base and one training."""

CROSSING, DELTAS, INTERFERENCE = "Where methods cross", "Tables 4 and 8: the deltas", "Interference"
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


@dataclass(frozen=True)
class Merge:
    """Models that were merged; shares of their skills are in percent, means over domains.

    Attributes:
        setting: The file of its tables.
        domains: The domains of the models.
        crosstalk: See `interference.Interference`.
        angle: The mean angle between the inputs of two models, in degrees.
        shared: What both of two models keep of what either keeps, pruned by 80 %, in percent.
        opposite: The share of opposite signs in it, in percent.
        relative: The mean deviation of the deltas, as a share of the weights' deviation.
        sum: What the best sum with a searched weight for each model keeps.
        inputs: What the best merge by inputs keeps, as it starts.
    """

    setting: str
    domains: tuple[str, ...]
    crosstalk: float
    angle: float
    shared: float
    opposite: float
    relative: float
    sum: float
    inputs: float

    @property
    def lead(self) -> float:
        """How far the merge by inputs is ahead of the sum, in points."""
        return self.inputs - self.sum


KEPT: Mapping[str, Callable[[Pruning], float]] = {
    "DARE": lambda pruning: pruning.dare,
    LINEARS: lambda pruning: pruning.linears,
    "DP": lambda pruning: pruning.dp,
    "DARE on linears less DP": lambda pruning: pruning.lead,
}
"""What a quantity may tell of a pruned model -> its value."""

QUANTITIES: Mapping[str, Callable[[Merge], float]] = {
    "cross-talk": lambda merge: merge.crosstalk,
    "angle between inputs": lambda merge: merge.angle,
    "shared elements": lambda merge: merge.shared,
    "opposite signs": lambda merge: merge.opposite,
    "deviation of the deltas": lambda merge: merge.relative,
    "what the sum keeps": lambda merge: merge.sum,
}
"""Quantity that may tell how far a merge by inputs is ahead -> its value."""


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


def list_merges(quotes: Quotes, setting: str) -> list[Merge]:
    """Return all sets of domains that were merged in a setting."""
    found = []
    for name, merges in quotes.tables.items():
        file, _, heading = name.partition(": ")
        if file != setting or ": merges of " not in heading:
            continue
        domains = heading.partition(": merges of ")[2]
        interference = f"{setting}: {INTERFERENCE}"
        unpruned, pruned = f"{domains}, unpruned", f"{domains}, 80 %"
        relative = [
            quotes.cell(f"{setting}: {DELTAS}", domain, "relative").value
            for domain in domains.split(" + ")
        ]
        found.append(
            Merge(
                setting,
                tuple(domains.split(" + ")),
                quotes.cell(interference, unpruned, "cross-talk").value,
                quotes.cell(interference, unpruned, "angle").value,
                quotes.cell(interference, pruned, "shared, %").value,
                quotes.cell(interference, pruned, "opposite, %").value,
                sum(relative) / len(relative),
                _best(merges, lambda merge, by: "inputs" not in merge and by == "search"),
                _best(
                    merges, lambda merge, by: merge.endswith("by inputs") and by.endswith("starts")
                ),
            )
        )
    return found


def _best(merges: Table, chosen: Callable[[str, str], bool]) -> float:
    """Return the largest mean of some merges, by their name and how their weights were found."""
    column = merges.head.index("mean")
    return max(
        float(row[column].partition(" ")[0]) for row in merges.rows if chosen(row[0], row[2])
    )


def correlate(values: Iterable[float], others: Iterable[float]) -> float:
    """Return Spearman's rank correlation of two quantities."""
    return float(spearmanr(list(values), list(others)).statistic)


def draw(prunings: Sequence[Pruning], merges: Sequence[Merge], path: Path) -> None:
    """Write a PNG: what DARE keeps and its lead by noise; by inputs, by what a sum keeps."""
    figure = Figure(figsize=(3 * PANEL[0], 1.15 * PANEL[1]), layout="constrained")
    kept, lead, merged = figure.subplots(1, 3)
    for panel in (kept, lead):
        panel.set_xscale("log")
        panel.set_xlabel("noise / deviation of the weights")
    merged.set_xlabel("kept by the best searched sum, %")
    kept.set_ylabel("kept, %")
    lead.set_ylabel("points")
    merged.set_ylabel("kept, %")
    lead.axhline(0, color="black", linewidth=0.5)
    kept.set_title("dare_linear (crosses) and dare_dpa (dots)", fontsize="medium")
    lead.set_title("DARE on linears less DP", fontsize="medium")
    merged.set_title("a merge by inputs", fontsize="medium")
    for number, setting in enumerate(dict.fromkeys(each.setting for each in prunings)):
        color, label = color_of(number), setting.replace("_", " ").replace("smollm2", "SmolLM2")
        own = [each for each in prunings if each.setting == setting]
        noise = [each.noise for each in own]
        kept.scatter(noise, [each.dare for each in own], 16, color, marker="x")
        kept.scatter(noise, [each.linears for each in own], 16, color, marker="o")
        lead.scatter(noise, [each.lead for each in own], 16, color, marker="o", label=label)
        pairs = [each for each in merges if each.setting == setting]
        sums = [each.sum for each in pairs]
        merged.scatter(sums, [each.inputs for each in pairs], 16, color, marker="o")
    _mark_bounds(kept)
    merged.axline((100, 100), slope=1, color="black", linewidth=0.5)
    merged.set_ylim(merged.get_xlim())
    figure.legend(*lead.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.savefig(path, dpi=100)


def _mark_bounds(panel: Axes) -> None:
    """Mark the noise up to which each of DARE's methods would do."""
    panel.axhline(WOULD_DO, color="black", linewidth=0.5)
    for method in RESCALED:
        largest, _ = bound_noise(method)
        panel.axvline(largest, color="black", linewidth=0.5, linestyle=":")


def format_table(prunings: Sequence[Pruning], merges: Sequence[Merge]) -> str:
    """Return the rank correlations of all quantities with what is kept and with the leads."""
    pruned = [
        [
            quantity,
            *(f"{correlate(values, map(kept, prunings)):.2f}" for kept in KEPT.values()),
        ]
        for quantity, values in (
            ("noise of the rescaling", [each.noise for each in prunings]),
            ("deviation of the deltas", [each.relative for each in prunings]),
            ("density", [each.density for each in prunings]),
        )
    ]
    return (
        "# Which quantity tells which method wins\n\n"
        "`python examples/paper/rule.py`. Spearman's rank correlations over all settings.\n\n"
        f"## One model\n\nOf {len(prunings)} models and densities, with what each method keeps.\n\n"
        f"{table(['quantity', *KEPT], pruned)}\n"
        "## One setting, by noise\n\nThe same correlations with the noise, within each setting.\n\n"
        f"{_format_settings(prunings)}\n"
        "## A merge\n\n"
        "With the lead: how far the best merge by inputs, as it starts, is ahead of the best sum "
        f"with searched weights. {_format_leads(merges)}\n"
        f"## Merges\n\nShares in percent, means over domains.\n\n{_format_merges(merges)}"
    )


def _format_settings(prunings: Sequence[Pruning]) -> str:
    """Return the rank correlations of the noise with what is kept, for each setting."""
    rows = []
    for setting in dict.fromkeys(each.setting for each in prunings):
        own = [each for each in prunings if each.setting == setting]
        noise = [each.noise for each in own]
        rows.append(
            [setting, *(f"{correlate(noise, map(kept, own)):.2f}" for kept in KEPT.values())]
        )
    return table(["setting", *KEPT], rows)


def _format_leads(merges: Sequence[Merge]) -> str:
    """Return the rank correlations of quantities with the lead, of all merges and of pairs."""
    pairs = [each for each in merges if each.setting == PAIRED and len(each.domains) == 2]
    rows = [
        [
            quantity,
            *(
                f"{correlate(map(measure, chosen), (each.lead for each in chosen)):.2f}"
                for chosen in (merges, pairs)
            ),
        ]
        for quantity, measure in QUANTITIES.items()
    ]
    return (
        f"Of {len(merges)} merges, and of the {len(pairs)} pairs of six models among them.\n\n"
        f"{table(['quantity', 'all merges', 'pairs'], rows)}"
    )


def _format_merges(merges: Sequence[Merge]) -> str:
    """Return all merges with what was measured of their deltas, and what they keep."""
    rows = [
        [
            each.setting,
            " + ".join(each.domains),
            *(f"{number:.2f}" for number in (each.crosstalk, each.relative)),
            *(f"{number:.0f}" for number in (each.angle, each.shared, each.opposite)),
            *(f"{number:.1f}" for number in (each.sum, each.inputs, each.lead)),
        ]
        for each in merges
    ]
    head = ["setting", "merge", "cross-talk", "deviation", "angle", "shared", "opposite"]
    return table([*head, "best sum", "by inputs", "lead"], rows, names=2)


def read_results() -> tuple[list[Pruning], list[Merge]]:
    """Return what the tables have of all settings."""
    quotes = Quotes(read_tables(HERE / "tables"))
    prunings = [each for setting in SETTINGS for each in list_prunings(quotes, setting)]
    return prunings, [each for setting in SETTINGS for each in list_merges(quotes, setting)]


def tabulate_results() -> str:
    """Return the table of all settings."""
    return format_table(*read_results())


def main() -> None:
    """Draw the figure and write the table."""
    draw(*read_results(), HERE / "figures" / "rule.png")
    (HERE / "tables" / "rule.md").write_text(tabulate_results(), encoding="utf-8")


if __name__ == "__main__":
    main()
