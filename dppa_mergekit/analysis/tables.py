"""An analysis as Markdown: verdicts first, then tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from statistics import mean

from dppa_mergekit.analysis.advice import describe_kept, verdicts
from dppa_mergekit.analysis.evidence import COMBINATIONS, MERGED, METHODS, PRUNED, noise_of
from dppa_mergekit.analysis.results import (
    RATES,
    Analysis,
    BlockAnalysis,
    LinearAnalysis,
    ModelAnalysis,
    TensorClass,
    kinds,
    short_names,
)
from dppa_mergekit.report.markdown_tables import table

MEASURES = ("magnitude", "significance", "density")
"""The columns that `_measures` fills."""


def overview(found: Analysis) -> str:
    """Return the verdicts and summary tables; `every_linear` has the details."""
    return "\n".join(_overview(found))


def every_linear(found: Analysis) -> str:
    """Return a table of the linears of each model, and one of all tensors."""
    parts = ["# Every linear"]
    for model in found.models:
        rows = [[_name(linear), *_measures(linear)] for linear in model.linears]
        parts += [f"\n## {model.model}\n", table(["linear", *MEASURES], rows)]
    rows = [
        [tensor.name, "x".join(map(str, tensor.shape)), _class(tensor)] for tensor in found.tensors
    ]
    parts += ["\n# Every tensor\n", table(["tensor", "shape", "class"], rows, names=3)]
    return "\n".join(parts)


def _overview(found: Analysis) -> Iterator[str]:
    names = short_names([model.model for model in found.models])
    for name, said in verdicts(found):
        yield f"{name}: {said}"
    yield "\nSkill kept by models that were pruned and merged elsewhere, in percent"
    yield "(examples/paper/RESULTS.md); deviation of the deltas, and noise of DARE's rescaling,"
    yield "relative to the base's weights.\n"
    yield _pruned_table()
    yield _merged_table()
    yield "Deltas of all linears: minimum, quantiles (to 0.4 % of their value), maximum, zeros.\n"
    yield _offsets_table(found, names)
    yield f"Kept elements, as {found.method} allocates them; deviation relative to the base's.\n"
    yield _kept_table(found, names)
    for model in found.models:
        yield f"Blocks of {names[model.model]}.\n"
        yield _block_table(model)
    yield "Kinds of linears: mean density, and the share of rows and columns that hold half of the"
    yield "kept elements; 50 % if they are spread evenly.\n"
    yield _kind_table(found, names)
    if found.pairs:
        yield "Pairs of models: the share that both keep, of the elements that either keeps; the"
        yield "share of opposite signs, of the elements that both keep.\n"
        yield _pair_table(found, names)
    classes = Counter(_class(tensor) for tensor in found.tensors)
    yield "Tensors: " + ", ".join(f"{number} {name}" for name, number in classes.items()) + ".\n"


def _pruned_table() -> str:
    """Return a table of models that were pruned one by one."""
    rows = [
        [
            measured.what,
            f"{measured.relative:g}",
            f"{density:g}",
            f"{noise_of(measured.relative, density):.2f}",
            *(describe_kept(kept.get(method)) for method in METHODS),
        ]
        for measured in PRUNED
        for density, kept in measured.kept.items()
    ]
    head = [*METHODS[:-1], f"{METHODS[-1]}, factors searched"]
    return table(["pruned one by one", "deviation", "density", "noise", *head], rows)


def _merged_table() -> str:
    """Return a table of models that were merged."""
    rows = [
        [
            merged.what,
            f"{merged.relative:g}",
            *(describe_kept(merged.combinations.get(by)) for by in COMBINATIONS),
        ]
        for merged in MERGED
    ]
    head = [by.removeprefix("by ") for by in COMBINATIONS]
    return table(["merged", "deviation", *head], rows)


def _offsets_table(found: Analysis, names: Mapping[str, str]) -> str:
    return table(
        ["model", "min", *(f"{tenth}0 %" for tenth in range(1, 10)), "max", "zeros"],
        [[names[model.model], *_offsets(model)] for model in found.models],
    )


def _offsets(model: ModelAnalysis) -> list[str]:
    offsets = model.offsets
    values = (offsets.minimum, *offsets.deciles, offsets.maximum)
    return [*(f"{value:.2g}" for value in values), f"{100 * offsets.zeros:.1f} %"]


def _kept_table(found: Analysis, names: Mapping[str, str]) -> str:
    return table(
        [
            *("model", "deviation", "density", "noise of DARE"),
            *("lowest", "highest", "whole or none", "kept", "of"),
        ],
        [[names[model.model], *_kept(model)] for model in found.models],
    )


def _kept(model: ModelAnalysis) -> list[str]:
    densities = [linear.density for linear in model.linears]
    return [
        f"{model.offsets.relative:.3f}",
        f"{model.density:.3f}",
        f"{model.noise:.2f}",
        f"{min(densities, default=0):.3f}",
        f"{max(densities, default=0):.3f}",
        str(model.clipped),
        f"{model.kept:,}",
        f"{model.numel:,}",
    ]


def _block_table(model: ModelAnalysis) -> str:
    return table(
        ["block", *MEASURES],
        [[f"{block.stack}.{block.number}", *_measures(block)] for block in model.blocks],
    )


def _measures(part: LinearAnalysis | BlockAnalysis) -> list[str]:
    significance = "" if part.significance is None else f"{part.significance:.2e}"
    return [f"{part.magnitude:.2e}", significance, f"{part.density:.3f}"]


def _kind_table(found: Analysis, names: Mapping[str, str]) -> str:
    columns = [f"{side} {rate} %" for rate in RATES for side in ("rows", "columns")]
    rows = [
        [names[model.model], kind, *_of_kind(model, kind)]
        for model in found.models
        for kind in kinds(model.linears)
    ]
    return table(["model", "kind", "density", *columns], rows, names=2)


def _of_kind(model: ModelAnalysis, kind: str) -> list[str]:
    members = [linear for linear in model.linears if linear.kind == kind]
    cells = [f"{mean(linear.density for linear in members):.3f}"]
    for rate in RATES:
        structures = [linear.structure[rate] for linear in members]
        cells.append(f"{100 * mean(found.rows_with_half for found in structures):.0f} %")
        cells.append(f"{100 * mean(found.columns_with_half for found in structures):.0f} %")
    return cells


def _pair_table(found: Analysis, names: Mapping[str, str]) -> str:
    states = list(found.pairs[0].overlaps)
    when = [f"{state} %" if state.isdigit() else state for state in states]
    rows = []
    for pair in found.pairs:
        cells = [" and ".join(names[model] for model in pair.models)]
        for state in states:
            overlap = pair.overlaps[state]
            cells += [f"{100 * overlap.shared:.1f} %", f"{100 * overlap.conflict:.1f} %"]
        rows.append(cells)
    columns = [f"{measure}, {state}" for state in when for measure in ("both", "signs")]
    return table(["models", *columns], rows)


def _name(linear: LinearAnalysis) -> str:
    return linear.tensor + (f", expert {linear.expert}" if linear.expert else "")


def _class(tensor: TensorClass) -> str:
    if tensor.dense_because is not None:
        return f"dense ({tensor.dense_because})"
    return "linear" if tensor.linears == 1 else f"linear x {tensor.linears}"
