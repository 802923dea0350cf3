"""What an analysis found, as text for people: verdicts first, then tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import mean

from dppa_mergekit.analysis.results import (
    RATES,
    Analysis,
    BlockAnalysis,
    LinearAnalysis,
    ModelAnalysis,
    kinds,
    short_names,
    verdict,
)
from dppa_mergekit.report.markdown_tables import table


def overview(found: Analysis) -> str:
    """All that fits a screen: every linear is in `every_linear`."""
    return "\n".join(_overview(found))


def every_linear(found: Analysis) -> str:
    """A table of all linears of every model, and one of all tensors."""
    parts = ["# Every linear"]
    for model in found.models:
        rows = [[_name(each), *_measures(each)] for each in model.linears]
        parts += [f"\n## {model.model}\n", table(["linear", *MEASURES], rows)]
    rows = [
        [each.name, "x".join(map(str, each.shape)), _class(each.linears, each.dense_because)]
        for each in found.tensors
    ]
    parts += ["\n# Every tensor\n", table(["tensor", "shape", "class"], rows, names=3)]
    return "\n".join(parts)


MEASURES = ("magnitude", "significance", "density")


def _overview(found: Analysis) -> Iterator[str]:
    names = short_names([model.model for model in found.models])
    for model in found.models:
        yield f"{model.model}: {verdict(model)}"
    yield "\nDeltas of all linears: least, quantiles (to 0.4 % of their value), largest; zeros.\n"
    yield table(
        ["model", "min", *(f"{tenth}0 %" for tenth in range(1, 10)), "max", "zeros"],
        [[names[model.model], *_offsets(model)] for model in found.models],
    )
    yield f"What is kept, allocated as {found.method} does; deviation relative to the base's.\n"
    yield table(
        ["model", "deviation", "density", "least", "most", "whole or none", "kept", "of"],
        [[names[model.model], *_kept(model)] for model in found.models],
    )
    for model in found.models:
        yield f"Blocks of {names[model.model]}.\n"
        yield table(
            ["block", *MEASURES],
            [[f"{each.stack}.{each.number}", *_measures(each)] for each in model.blocks],
        )
    yield "Kinds of linears: mean density, and what share of rows and columns holds half of what is"
    yield "kept; 50 % where it is spread evenly.\n"
    rates = [f"{what} {rate} %" for rate in RATES for what in ("rows", "columns")]
    yield table(
        ["model", "kind", "density", *rates],
        [
            [names[model.model], kind, *_of_kind(model, kind)]
            for model in found.models
            for kind in kinds(model.linears)
        ],
        names=2,
    )
    if found.pairs:
        yield "Pairs: of what either keeps, the share that both do; of that, opposite signs.\n"
        states = list(found.pairs[0].overlaps)
        yield table(
            [
                "models",
                *(f"{what}, {_rate(state)}" for state in states for what in ("both", "signs")),
            ],
            [
                [
                    " and ".join(names[model] for model in pair.models),
                    *(
                        f"{100 * value:.1f} %"
                        for state in states
                        for value in (pair.overlaps[state].shared, pair.overlaps[state].conflict)
                    ),
                ]
                for pair in found.pairs
            ],
        )
    classes = Counter(_class(each.linears, each.dense_because) for each in found.tensors)
    yield "Tensors: " + ", ".join(f"{number} {what}" for what, number in classes.items()) + ".\n"


def _offsets(model: ModelAnalysis) -> list[str]:
    offsets = model.offsets
    values = (offsets.minimum, *offsets.deciles, offsets.maximum)
    return [*(f"{value:.2g}" for value in values), f"{100 * offsets.zeros:.1f} %"]


def _kept(model: ModelAnalysis) -> list[str]:
    densities = [each.density for each in model.linears]
    return [
        f"{model.offsets.relative:.3f}",
        f"{model.density:.3f}",
        f"{min(densities, default=0):.3f}",
        f"{max(densities, default=0):.3f}",
        str(model.clipped),
        f"{model.kept:,}",
        f"{model.numel:,}",
    ]


def _measures(each: LinearAnalysis | BlockAnalysis) -> list[str]:
    significance = "" if each.significance is None else f"{each.significance:.2e}"
    return [f"{each.magnitude:.2e}", significance, f"{each.density:.3f}"]


def _of_kind(model: ModelAnalysis, kind: str) -> list[str]:
    members = [each for each in model.linears if each.kind == kind]
    halves = [
        f"{100 * mean(_halves(each, rate)[side] for each in members):.0f} %"
        for rate in RATES
        for side in (0, 1)
    ]
    return [f"{mean(each.density for each in members):.3f}", *halves]


def _halves(each: LinearAnalysis, rate: int) -> tuple[float, float]:
    return each.structure[rate].rows_with_half, each.structure[rate].columns_with_half


def _name(each: LinearAnalysis) -> str:
    return each.tensor + (f", expert {each.expert}" if each.expert else "")


def _rate(name: str) -> str:
    return f"{name} %" if name.isdigit() else name


def _class(linears: int, because: str | None) -> str:
    if because is None:
        return "linear" if linears == 1 else f"linears, {linears} each"
    return f"dense ({because})"
