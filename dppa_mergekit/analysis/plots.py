"""Pictures of an analysis: densities (paper Fig. 1), offsets, kept structure (Fig. 3), overlap."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from dppa_mergekit.analysis.results import (
    RATES,
    Analysis,
    LinearAnalysis,
    ModelAnalysis,
    kinds,
    short_names,
)
from dppa_mergekit.report.plot_style import color_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL = 3.2
"""Width and height of a panel in inches."""

PICTURES = {
    "density.png": "Density kept of every linear, by kind and block (as in the paper's Fig. 1).",
    "offsets.png": "How the deltas of all linears are distributed.",
    "structure.png": "How what is kept is spread over rows and columns (as in the paper's Fig. 3); "
    "level lines would be even.",
    "overlap.png": "Of what either model keeps, the share that both do, and of that the share with "
    "opposite signs; in percent.",
}
"""Their files, and what they show."""

STYLES = {90: "-", 80: "--"}


def draw_analysis(found: Analysis, folder: Path) -> None:
    """Write density.png, offsets.png, structure.png and, of several models, overlap.png."""
    draw_density(found, folder / "density.png")
    pictures = {"offsets": _offsets(found), "structure": _structure(found)}
    if found.pairs:
        pictures["overlap"] = _overlap(found)
    for name, figure in pictures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)


def draw_density(found: Analysis, path: Path) -> None:
    """Write the heat maps of the densities."""
    _density(found).savefig(path, dpi=150)


def _density(found: Analysis) -> Figure:
    """A heat map for each model: kinds of linears by blocks."""
    from matplotlib.figure import Figure

    rows = {model.model: kinds(model.linears) for model in found.models}
    blocks = max(len(model.blocks) for model in found.models)
    tallest = max(map(len, rows.values()))
    width = min(16.0, 3.5 + 0.3 * blocks)
    height = (0.9 + 0.28 * tallest) * len(found.models) + 0.4
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(len(found.models), 1, squeeze=False)[:, 0]
    names = short_names(list(rows))
    every = [each.density for model in found.models for each in model.linears]
    for panel, model in zip(panels, found.models, strict=True):
        image = panel.imshow(
            _by_kind_and_block(model, rows[model.model]),
            aspect="auto",
            cmap="viridis",
            vmin=min(every, default=0),
            vmax=max(every, default=1),
            interpolation="nearest",
        )
        panel.set_yticks(range(len(rows[model.model])), rows[model.model], fontsize="small")
        panel.set_title(names[model.model], fontsize="medium")
        panel.locator_params(axis="x", integer=True)
    panels[-1].set_xlabel("block")
    figure.colorbar(image, ax=list(panels), label="density kept")
    return figure


def _by_kind_and_block(model: ModelAnalysis, rows: list[str]) -> list[list[float]]:
    """Densities; experts of one block are one, and what is not there is NaN."""
    held: dict[tuple[str, str], list[LinearAnalysis]] = {}
    for each in model.linears:
        held.setdefault((each.kind, _before(each)), []).append(each)
    columns = [f"{block.stack}.{block.number}".lstrip(".") for block in model.blocks]
    return [
        [
            sum(each.kept for each in held[kind, block])
            / sum(each.numel for each in held[kind, block])
            if (kind, block) in held
            else float("nan")
            for block in columns
        ]
        for kind in rows
    ]


def _before(each: LinearAnalysis) -> str:
    """The part of a linear's name that names its block."""
    return each.tensor.removesuffix(".weight").removesuffix(each.kind).rstrip(".")


def _offsets(found: Analysis) -> Figure:
    """The share of deltas by their value, of every model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * PANEL, PANEL), layout="constrained")
    panel = figure.subplots()
    names = short_names([model.model for model in found.models])
    for number, model in enumerate(found.models):
        shares, reach = model.offsets.histogram, model.offsets.reach
        if not shares:
            continue
        width = 2 * reach / len(shares)
        edges = [-reach + width * place for place in range(len(shares) + 1)]
        panel.stairs(
            [share / width for share in shares],
            edges,
            label=names[model.model],
            color=color_of(number),
        )
    panel.set_yscale("log")
    panel.set_xlabel("delta, up to its 99.9 % quantile")
    panel.set_ylabel("density of deltas")
    if panel.patches:
        panel.legend(fontsize="small")
    return figure


def _structure(found: Analysis) -> Figure:
    """Share kept of a row and of a column, from the fullest on; means over blocks and models."""
    from matplotlib.figure import Figure

    every = [each for model in found.models for each in model.linears]
    names = kinds(every)
    columns = min(2, max(1, len(names)))
    lines = -(-len(names) // columns)
    figure = Figure(
        figsize=(1.3 * PANEL * columns, 0.8 * PANEL * lines + 0.5), layout="constrained"
    )
    grid = figure.subplots(max(1, lines), columns, squeeze=False, sharex=True, sharey=True)
    for panel, kind in zip(grid.flat, names, strict=False):
        members = [each for each in every if each.kind == kind]
        for rate in RATES:
            for number, side in enumerate(("rows", "columns")):
                profiles = [getattr(each.structure[rate], side) for each in members]
                profile = [100 * mean(values) for values in zip(*profiles, strict=True)]
                panel.plot(
                    [100 * place / (len(profile) - 1) for place in range(len(profile))],
                    profile,
                    color=color_of(number),
                    linestyle=STYLES[rate],
                    label=f"{side} at {rate} %",
                )
        panel.set_title(kind, fontsize="medium")
    for panel in grid.flat[max(0, len(names) - columns) : len(names)]:
        panel.tick_params(labelbottom=True)
    for panel in grid.flat[len(names) :]:
        panel.set_axis_off()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize="small")
    figure.supxlabel("rows or columns, from the fullest on, %", fontsize="medium")
    figure.supylabel("kept of each, %", fontsize="medium")
    return figure


def _overlap(found: Analysis) -> Figure:
    """For each state, a matrix of pairs: what both keep, and how often their signs differ."""
    from matplotlib.figure import Figure

    names = [model.model for model in found.models]
    states = list(found.pairs[0].overlaps)
    figure = Figure(figsize=(PANEL * len(states), 2 * PANEL * 0.9), layout="constrained")
    grid = figure.subplots(2, len(states), squeeze=False)
    for column, state in enumerate(states):
        for row, (what, title) in enumerate(
            (("shared", "kept by both"), ("conflict", "opposite signs"))
        ):
            panel = grid[row, column]
            matrix = [[float("nan")] * len(names) for _ in names]
            for pair in found.pairs:
                one, other = (names.index(each) for each in pair.models)
                value = 100 * float(getattr(pair.overlaps[state], what))
                matrix[one][other] = matrix[other][one] = value
                for x, y in ((one, other), (other, one)):
                    color = "white" if value < 50 else "black"
                    panel.text(x, y, f"{value:.0f}", ha="center", va="center", color=color)
            image = panel.imshow(matrix, vmin=0, vmax=100, cmap="viridis")
            labels = list(short_names(names).values())
            panel.set_xticks(range(len(names)), labels, fontsize="small", rotation=30, ha="right")
            panel.set_yticks(range(len(names)), labels, fontsize="small")
            when = f"pruned by {state} %" if state.isdigit() else state
            panel.set_title(f"{title}, {when}", fontsize="small")
    figure.colorbar(image, ax=list(grid.flat), label="%", shrink=0.6)
    return figure
