"""What was observed, as Markdown tables and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from dppa_mergekit.moments.activations_file import ActivationsFile
from dppa_mergekit.observation.overlap import (
    LEADING,
    InputsOfModels,
    by_kind,
    mean_angle,
    mean_held,
)
from dppa_mergekit.recipes.references import short_name
from dppa_mergekit.report.markdown_tables import table
from dppa_mergekit.report.plot_style import PANEL, color_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS_IN_ROW = 4


def observation_summary(
    files: Mapping[str, ActivationsFile], found: Sequence[InputsOfModels]
) -> str:
    """Return tables of the models and of the kinds of linears."""
    models = table(
        ["model", "prompts", "own answers", "tokens", "file, MB", "not reached"],
        [
            [
                model,
                str(file.observation.prompts),
                str(file.observation.answered),
                str(file.observation.tokens),
                f"{Path(file.path).stat().st_size / 1e6:.1f}",
                str(len(file.observation.unused)),
            ]
            for model, file in files.items()
        ],
    )
    rows = []
    for kind, inputs in by_kind(found).items():
        angle = mean_angle(inputs)
        shown = "" if angle is None else f"{angle:.0f}"
        rows.append([kind, str(len(inputs)), f"{100 * mean_held(inputs):.1f}", shown])
    kinds = table(["inputs of", "number", "trace held, %", "angle, degrees"], rows)
    return (
        f"# Inputs of fine-tuned models\n\n{models}\n"
        f"Trace held: the share of the second moments' trace that their rank holds; the rest is "
        f"kept as a diagonal. Angle: the mean principal angle between the {LEADING} leading "
        f"directions of two models' inputs; 0 if they are the same, 90 if they are orthogonal.\n\n"
        f"{kinds}"
    )


def draw_inputs(found: Sequence[InputsOfModels], path: Path) -> None:
    """Write a PNG with a panel of angles and of the trace held for every kind of linear."""
    from matplotlib.figure import Figure

    kinds = by_kind(found)
    columns = min(PANELS_IN_ROW, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (kind, inputs) in zip(panels, kinds.items(), strict=False):
        _draw_kind(panel, kind, inputs)
    for panel in panels[len(kinds) :]:
        panel.set_axis_off()
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _draw_kind(panel: Axes, kind: str, found: Sequence[InputsOfModels]) -> None:
    """Draw, block by block, the angle of every two models, and the share of the trace held."""
    from matplotlib.ticker import MaxNLocator

    blocks = sorted({inputs.block or 0 for inputs in found})
    pairs = dict.fromkeys(pair for inputs in found for pair in inputs.angles)
    for index, pair in enumerate(pairs):
        of_blocks = [
            mean(
                [
                    inputs.angles[pair]
                    for inputs in found
                    if (inputs.block or 0) == block and pair in inputs.angles
                ]
                or [float("nan")]
            )
            for block in blocks
        ]
        label = " and ".join(short_name(model) for model in pair)
        panel.plot(blocks, of_blocks, marker="o", markersize=3, color=color_of(index), label=label)
    held = [
        100 * mean_held([inputs for inputs in found if (inputs.block or 0) == block])
        for block in blocks
    ]
    panel.plot(blocks, held, color="grey", linestyle=":", label="trace held, %")
    panel.set_ylim(0, 105)
    panel.set_title(kind, fontsize="small")
    panel.set_xlabel("block")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylabel("angle, degrees")
