"""Plots of an analysis: densities (paper Fig. 1), offsets, structure (Fig. 3), overlap."""

from __future__ import annotations

from collections.abc import Mapping
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
from dppa_mergekit.tensor_names import Block, block_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SQUARE_PANEL = 3.2
"""Side of a square panel in inches; the figures scale it to their needs."""

PICTURES = {
    "density.png": "Density of every linear, by kind and block (as in the paper's Fig. 1).",
    "offsets.png": "Distribution of the deltas of all linears.",
    "structure.png": "Spread of the kept elements over rows and columns (as in the paper's "
    "Fig. 3); an even spread would give horizontal lines.",
    "overlap.png": "Overlap of each pair of models: the share that both keep, of the elements that "
    "either keeps, and the share of opposite signs, of the elements that both keep; in percent.",
}
"""File name -> caption."""

LINE_STYLES = {90: "-", 80: "--"}
"""Rate -> line style."""


def draw_analysis(found: Analysis, folder: Path) -> None:
    """Write density.png, offsets.png, structure.png and, for several models, overlap.png."""
    draw_density(found, folder / "density.png")
    figures = {"offsets": _offsets_figure(found), "structure": _structure_figure(found)}
    if found.pairs:
        figures["overlap"] = _overlap_figure(found)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)


def draw_density(found: Analysis, path: Path) -> None:
    """Write a PNG with a heat map of the densities for each model."""
    _density_figure(found).savefig(path, dpi=150)


def _density_figure(found: Analysis) -> Figure:
    """Draw a heat map for each model: kinds of linears by blocks."""
    from matplotlib.figure import Figure

    rows = {model.model: kinds(model.linears) for model in found.models}
    blocks = max(len(model.blocks) for model in found.models)
    tallest = max(map(len, rows.values()))
    width = min(16.0, 3.5 + 0.3 * blocks)
    height = (0.9 + 0.28 * tallest) * len(found.models) + 0.4
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(len(found.models), 1, squeeze=False)[:, 0]
    names = short_names(list(rows))
    densities = [linear.density for model in found.models for linear in model.linears]
    images = []
    for panel, model in zip(panels, found.models, strict=True):
        panel.set_title(names[model.model], fontsize="medium")
        if not model.linears:
            panel.set_xticks([])
            panel.set_yticks([])
            continue
        image = panel.imshow(
            _by_kind_and_block(model, rows[model.model]),
            aspect="auto",
            cmap="viridis",
            vmin=min(densities),
            vmax=max(densities),
            interpolation="nearest",
        )
        images.append(image)
        panel.set_yticks(range(len(rows[model.model])), rows[model.model], fontsize="small")
        panel.locator_params(axis="x", integer=True)
    panels[-1].set_xlabel("block")
    if images:
        figure.colorbar(images[0], ax=list(panels), label="density kept")
    return figure


def _by_kind_and_block(model: ModelAnalysis, rows: list[str]) -> list[list[float]]:
    """Return (kinds, blocks) the densities; NaN where a block has no linear of a kind.

    The linears of one kind in one block, such as its experts, count as one.
    """
    held: dict[tuple[str, Block | None], list[LinearAnalysis]] = {}
    for linear in model.linears:
        held.setdefault((linear.kind, block_of(linear.tensor)), []).append(linear)
    columns = [Block(block.stack, block.number) for block in model.blocks]
    return [[_joint_density(held.get((kind, block), [])) for block in columns] for kind in rows]


def _joint_density(linears: list[LinearAnalysis]) -> float:
    """Return the density over all elements of several linears; NaN for none."""
    if not linears:
        return float("nan")
    return sum(linear.kept for linear in linears) / sum(linear.numel for linear in linears)


def _offsets_figure(found: Analysis) -> Figure:
    """Draw the distribution of the deltas of every model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * SQUARE_PANEL, SQUARE_PANEL), layout="constrained")
    panel = figure.subplots()
    names = short_names([model.model for model in found.models])
    for index, model in enumerate(found.models):
        shares, reach = model.offsets.histogram, model.offsets.reach
        if not shares:
            continue
        width = 2 * reach / len(shares)
        edges = [-reach + width * edge for edge in range(len(shares) + 1)]
        panel.stairs(
            [share / width for share in shares],
            edges,
            label=names[model.model],
            color=color_of(index),
        )
    panel.set_yscale("log")
    panel.set_xlabel("delta, up to its 99.9 % quantile")
    panel.set_ylabel("density of deltas")
    if panel.patches:
        panel.legend(fontsize="small")
    return figure


def _structure_figure(found: Analysis) -> Figure:
    """Draw the kept share of rows and columns by rank, as means over blocks and models."""
    from matplotlib.figure import Figure

    linears = [linear for model in found.models for linear in model.linears]
    names = kinds(linears)
    columns = min(2, max(1, len(names)))
    lines = -(-len(names) // columns)
    figure = Figure(
        figsize=(1.3 * SQUARE_PANEL * columns, 0.8 * SQUARE_PANEL * lines + 0.5),
        layout="constrained",
    )
    grid = figure.subplots(max(1, lines), columns, squeeze=False, sharex=True, sharey=True)
    for panel, kind in zip(grid.flat, names, strict=False):
        _draw_profiles(panel, [linear for linear in linears if linear.kind == kind])
        panel.set_title(kind, fontsize="medium")
    for panel in grid.flat[max(0, len(names) - columns) : len(names)]:
        panel.tick_params(labelbottom=True)
    for panel in grid.flat[len(names) :]:
        panel.set_axis_off()
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize="small")
    figure.supxlabel("rows or columns, fullest first, %", fontsize="medium")
    figure.supylabel("share kept, %", fontsize="medium")
    return figure


def _draw_profiles(panel: Axes, linears: list[LinearAnalysis]) -> None:
    """Draw the mean profiles of rows and columns of several linears, at each rate."""
    for rate in RATES:
        structures = [linear.structure[rate] for linear in linears]
        sides = {
            "rows": [structure.rows for structure in structures],
            "columns": [structure.columns for structure in structures],
        }
        for index, (side, profiles) in enumerate(sides.items()):
            profile = [100 * mean(shares) for shares in zip(*profiles, strict=True)]
            panel.plot(
                [100 * rank / (len(profile) - 1) for rank in range(len(profile))],
                profile,
                color=color_of(index),
                linestyle=LINE_STYLES[rate],
                label=f"{side} at {rate} %",
            )


def _overlap_figure(found: Analysis) -> Figure:
    """Draw two matrices of all pairs, before pruning and at each rate: kept by both, signs."""
    from matplotlib.figure import Figure

    names = [model.model for model in found.models]
    labels = list(short_names(names).values())
    states = list(found.pairs[0].overlaps)
    figure = Figure(
        figsize=(SQUARE_PANEL * len(states), 2 * SQUARE_PANEL * 0.9), layout="constrained"
    )
    grid = figure.subplots(2, len(states), squeeze=False)
    for column, state in enumerate(states):
        overlaps = {
            (names.index(pair.models[0]), names.index(pair.models[1])): pair.overlaps[state]
            for pair in found.pairs
        }
        measures = {
            "kept by both": {pair: overlap.shared for pair, overlap in overlaps.items()},
            "opposite signs": {pair: overlap.conflict for pair, overlap in overlaps.items()},
        }
        for row, (title, shares) in enumerate(measures.items()):
            panel = grid[row, column]
            image = _draw_matrix(panel, shares, labels)
            when = f"pruned by {state} %" if state.isdigit() else state
            panel.set_title(f"{title}, {when}", fontsize="small")
    figure.colorbar(image, ax=list(grid.flat), label="%", shrink=0.6)
    return figure


def _draw_matrix(
    panel: Axes, shares: Mapping[tuple[int, int], float], labels: list[str]
) -> AxesImage:
    """Draw a symmetric matrix of shares in percent; its diagonal stays empty.

    Args:
        panel: Where to draw.
        shares: Row and column -> share from 0 to 1; one triangle of the matrix.
        labels: The names of rows and columns.
    """
    matrix = [[float("nan")] * len(labels) for _ in labels]
    for (one, other), share in shares.items():
        value = 100 * share
        matrix[one][other] = matrix[other][one] = value
        color = "white" if value < 50 else "black"
        for x, y in ((one, other), (other, one)):
            panel.text(x, y, f"{value:.0f}", ha="center", va="center", color=color)
    image = panel.imshow(matrix, vmin=0, vmax=100, cmap="viridis")
    panel.set_xticks(range(len(labels)), labels, fontsize="small", rotation=30, ha="right")
    panel.set_yticks(range(len(labels)), labels, fontsize="small")
    return image
