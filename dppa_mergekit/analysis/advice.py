"""Advice on pruning and combining, drawn from an analysis and from what was measured elsewhere.

`evidence` has all numbers; nothing here decides by others. With prompts, what was measured of these
models decides in its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from dppa_mergekit.analysis.evidence import (
    INPUTS,
    MERGED,
    METHODS,
    PRUNED,
    SIGNS,
    SUM,
    WOULD_DO,
    Kept,
    Merged,
    Pruned,
)
from dppa_mergekit.analysis.results import Analysis, Divergences, MergeDivergences, ModelAnalysis

LIKE = 1.25
"""Up to this ratio, deltas count as large as those that were measured."""

CLOSE = 1.25
"""A divergence counts as no worse than the least up to this multiple of it."""


def verdict(found: ModelAnalysis) -> str:
    """Return sentences on which method would prune a model at the recipe's density."""
    if found.offsets.deviation == 0:
        return "There is nothing to prune: its linears equal those of the base."
    if found.density >= 1:
        return "Nothing is pruned at density 1, by any method."
    if found.density == 0:
        return "Nothing is kept at density 0, by any method."
    if found.divergences is not None:
        return _verdict_measured(found.divergences, found.density)
    return _verdict_by_evidence(found.offsets.relative, found.density)


def _verdict_measured(measured: Divergences, density: float) -> str:
    """Return the verdict on one model from its divergences."""
    by_method = measured.by_method
    least = min(by_method.values())
    # Of answers that hardly change, rounding may bring a divergence below 0.
    level = [method for method, value in by_method.items() if value <= max(least, CLOSE * least)]
    numbers = ", ".join(f"{value:.3g} by {method}" for method, value in by_method.items())
    return (
        f"{level[0]} would do: of the methods without factors to tune, {_and(level)} "
        f"{'move' if len(level) > 1 else 'moves'} its answers least. Pruned to density "
        f"{density:.2g}, the model diverges from its unpruned self, in nats per token on "
        f"{measured.prompts} prompts, by {numbers}."
    )


def _verdict_by_evidence(relative: float, density: float) -> str:
    """Return the verdict on one model from what was measured of others."""
    like = _most_like(relative)
    rows = [each.kept[_density_of(each, density)] for each in like]
    size = f"its deltas deviate by {relative:.2g} of the base's weights"
    if relative * LIKE < like[0].relative:
        size += ", less than any that were measured"
    if relative > LIKE * like[-1].relative:
        size += ", more than any that were measured"
    parts = [
        f"{each.what} ({each.relative:g}) kept, pruned to {_density_of(each, density):g}, "
        f"{_kept({_BY[method]: kept for method, kept in row.items()})}"
        for each, row in zip(like, rows, strict=True)
    ]
    return f"{_conclude(rows)}: {size}; {'; '.join(parts)}."


_BY = {method: f"by {method}" for method in METHODS} | {"dppa": "by dppa with searched factors"}


def _conclude(rows: Sequence[Mapping[str, Kept]]) -> str:
    """Return which methods would do, by the least share that was kept in each row."""
    least = {
        method: [row[method][0] for row in rows if method in row]
        for method in METHODS
        if any(method in row for row in rows)
    }
    would = [method for method, shares in least.items() if min(shares) >= WOULD_DO]
    may = [method for method, shares in least.items() if min(shares) < WOULD_DO <= max(shares)]
    if not would:
        hope = f", though {_and(may)} may" if may else ""
        return f"No method is sure to do at this density{hope}; prune less"
    if would[0] == METHODS[0]:
        return f"{METHODS[0]} would probably do"
    plain = "may not" if METHODS[0] in may else "would not"
    return f"{would[0]} would probably do, {METHODS[0]} {plain}"


def _most_like(relative: float) -> list[Pruned]:
    """Return the models of which the deltas are as large, or the next smaller and larger ones."""
    for each in PRUNED:
        if 1 / LIKE <= relative / each.relative <= LIKE:
            return [each]
    smaller = [each for each in PRUNED if each.relative < relative]
    larger = [each for each in PRUNED if each.relative > relative]
    return [*smaller[-1:], *larger[:1]]


def _density_of(measured: Pruned, density: float) -> float:
    """Return the density that was measured and is nearest."""
    return min(measured.kept, key=lambda each: abs(math.log(each / density)))


def merge_verdict(found: Analysis) -> str | None:
    """Return sentences on how to combine the models of a merge; None for one model."""
    if len(found.models) < 2:
        return None
    if found.merges:
        return _combine_measured(found.merges)
    deviations = [model.offsets.relative for model in found.models if model.offsets.relative > 0]
    return None if not deviations else _combine_by_evidence(mean(deviations), len(found.models))


def _combine_measured(merges: Sequence[MergeDivergences]) -> str:
    """Return the verdict on a merge from its divergences."""
    best = min(merges, key=lambda each: each.mean)
    numbers = ", ".join(
        f"{each.mean:.3g} {each.combination} ({each.method}"
        + ("" if each.weight is None else f", weight {each.weight:g}")
        + ")"
        for each in merges
    )
    return (
        f"Combine {best.combination} ({best.method}): of all merges it diverges least from the "
        f"models on their own prompts. In nats per token, the mean over models: {numbers}."
    )


def _combine_by_evidence(relative: float, models: int) -> str:
    """Return the verdict on a merge from what was measured of others."""
    known = [each for each in MERGED if INPUTS in each.combinations]
    nearest = min(known, key=lambda each: (_far(each, relative), abs(each.models - models)))
    leads = [each.combinations[INPUTS][1] - each.combinations[SUM][1] for each in known]
    behind = [
        each.combinations[SUM][1] - each.combinations[SIGNS][1]
        for each in MERGED
        if SIGNS in each.combinations
    ]
    return (
        f"Combine by inputs (dppa_regmean or dare_regmean, with prompts): in {len(known)} merges "
        f"that were measured, the best of them kept {min(leads)} to {max(leads)} points more than "
        f"the best sum with one weight a model. TIES kept {min(behind)} to {max(behind)} points "
        f"less than that sum. The nearest to these {models} models, whose deltas deviate by "
        f"{relative:.2g} of the base's weights, is of {nearest.what} ({nearest.relative:g}), which "
        f"kept {_kept(nearest.combinations)}. No base above 135 M parameters was "
        f"measured; --prompts measures yours."
    )


def _far(measured: Merged, relative: float) -> float:
    return abs(math.log(measured.relative / relative))


def _kept(kept: Mapping[str, Kept]) -> str:
    """Return shares that were kept, by what they are kept by, as text."""
    return ", ".join(f"{_range(shares)} {by}" for by, shares in kept.items())


def _range(kept: Kept) -> str:
    least, largest = kept
    return f"{largest} %" if least == largest else f"{least} to {largest} %"


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
