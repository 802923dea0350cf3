"""A contest of methods in Markdown, in sentences, and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dppa_mergekit.report.markdown_tables import table
from dppa_mergekit.report.phrases import count
from dppa_mergekit.report.plot_style import PANEL, color_of
from dppa_mergekit.scoring.objectives import DEVIATIONS
from dppa_mergekit.search.entrants import Placed
from dppa_mergekit.search.summary import format_setting


def contest_summary(placed: Sequence[Placed]) -> str:
    """Return a table of all entrants, and what separates the first from the second."""
    first = placed[0].standing
    parts = list(first.objective.parts(first.scores))
    rows = []
    for one in placed:
        ratios = one.standing.objective.parts(one.standing.scores)
        rows.append(
            [
                one.entrant.method,
                "" if one.entrant.density is None else f"{one.entrant.density:g}",
                str(one.estimate),
                *(str(ratios[name]) for name in parts),
                str(one.standing.evaluations),
                f"{one.standing.seconds:.0f} s",
                describe_end(one),
            ]
        )
    head = ["method", "density", "Domain-Ratio", *parts, "candidates", "time", ""]
    found = ", ".join(f"{name} {format_setting(value)}" for name, value in first.settings.items())
    errors = (
        f", with its standard error, on {first.items} items; entrants that were given up were "
        f"compared on a part of them"
        if first.items
        else ""
    )
    return (
        f"# Contest of {len(placed)} entrants\n\n{table(head, rows, names=2)}\n"
        f"Dev Domain-Ratio in percent of the fine-tuned models{errors}. The choice was made by "
        f"these scores, so the best values are optimistic.\n\n"
        f"{separation(placed)}\n\nThe best: {found}.\n"
    )


def describe_placed(one: Placed) -> str:
    """Return an entrant and how it ended as one line of text."""
    end = describe_end(one)
    if not end:
        end = ", ".join(
            f"{name} {format_setting(value)}" for name, value in one.standing.settings.items()
        )
    return (
        f"{one.entrant.label}: dev Domain-Ratio {one.estimate} "
        f"({count(one.standing.evaluations, 'candidate')}, {one.standing.seconds:.0f} s); {end}"
    )


def describe_end(one: Placed) -> str:
    """Return how an entrant was given up, and whether it loses guards; empty for neither."""
    parts = []
    if one.behind is not None:
        # Behind by its guards alone, it may be ahead by Domain-Ratio.
        parts.append(f"given up, {one.behind} behind" if one.behind.value > 0 else "given up")
    if one.standing.lost:
        parts.append("loses more of the guard than is allowed")
    return ", ".join(parts)


def separation(placed: Sequence[Placed]) -> str:
    """Return in a sentence what separates the first entrant from the second.

    Args:
        placed: The entrants, best first, those that were given up last.
    """
    first, second = placed[0], placed[1]
    names = first.entrant.label, second.entrant.label
    if second.behind is not None:
        return f"{names[0]} leads; all others were given up, first of them {names[1]}."
    lead = first.standing.lead_over(second.standing)
    if second.standing.lost > first.standing.lost:
        more = "still more" if first.standing.lost else "more"
        return f"{names[0]} leads {names[1]}, which loses {more} of the guard than is allowed."
    if not first.standing.items or lead.error is None:
        return (
            f"{names[0]} leads {names[1]} by {lead.value:.1f}; how sure that is cannot be told "
            f"from scores of whole tasks."
        )
    if first.standing.is_ahead_of(second.standing):
        return (
            f"{names[0]} leads {names[1]} by {lead} on the same {first.standing.items} items: more "
            f"than {DEVIATIONS:g} standard errors."
        )
    return (
        f"{names[0]} and {names[1]} are not separated by {first.standing.items} items: the "
        f"difference is {lead}."
    )


def draw_contest(placed: Sequence[Placed], path: Path) -> None:
    """Write a PNG with the Domain-Ratio of every entrant, the best at the top."""
    from matplotlib.figure import Figure

    height = 0.6 + 0.25 * len(placed)
    figure = Figure(figsize=(1.5 * PANEL[0], height), layout="constrained")
    panel = figure.subplots()
    for place, one in enumerate(placed):
        panel.errorbar(
            [one.estimate.value],
            [-place],
            xerr=[one.estimate.error or 0.0],
            fmt="o" if one.behind is None else "x",
            color=color_of(0 if one.behind is None else 1),
        )
    panel.set_yticks([-place for place in range(len(placed))])
    panel.set_yticklabels([one.entrant.label for one in placed])
    panel.set_xlabel("dev Domain-Ratio, %; crosses were given up")
    panel.grid(axis="x", linewidth=0.3)
    figure.savefig(path, dpi=150)
