"""Advice on pruning and combining, drawn from an analysis and from what was measured elsewhere.

`evidence` has all numbers; nothing here decides by others. With prompts, what was measured of these
models decides in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean

from dppa_mergekit.analysis.evidence import (
    CLOSE,
    INPUTS,
    LEARNED,
    LEARNED_INPUTS,
    LIKE,
    MERGED,
    METHODS,
    PRUNED,
    RESCALED,
    SIGNS,
    SUM,
    WOULD_DO,
    Kept,
    Merged,
    Pruned,
    bound_noise,
    noise_of,
)
from dppa_mergekit.analysis.results import Analysis, Divergences, MergeDivergences, ModelAnalysis
from dppa_mergekit.report.phrases import join_names


def verdicts(found: Analysis) -> list[tuple[str, str]]:
    """Return the name and the verdict of every model and, of several models, of their merge."""
    said = [(model.model, verdict(model)) for model in found.models]
    of_merge = merge_verdict(found)
    return said if of_merge is None else [*said, ("The merge", of_merge)]


def verdict(found: ModelAnalysis) -> str:
    """Return sentences on which method would prune a model at the recipe's density."""
    if not found.linears:
        return "There is nothing to prune: it has no linears."
    if found.offsets.deviation == 0:
        return "There is nothing to prune: its linears equal those of the base."
    if found.density >= 1:
        return "Nothing is pruned at density 1, by any method."
    if found.density == 0:
        return "Nothing is kept at density 0, by any method."
    if found.divergences is not None:
        return _verdict_measured(found.divergences, found.density)
    return _verdict_by_evidence(found)


def _verdict_measured(measured: Divergences, density: float) -> str:
    """Return the verdict on one model from its divergences."""
    by_method = measured.by_method
    least = min(by_method.values())
    # Of answers that hardly change, rounding may bring a divergence below 0.
    level = [method for method, value in by_method.items() if value <= max(least, CLOSE * least)]
    numbers = ", ".join(f"{max(value, 0):.3g} by {method}" for method, value in by_method.items())
    return (
        f"Prune by {level[0]}: of the methods without factors to tune, {join_names(level)} "
        f"{'move' if len(level) > 1 else 'moves'} its answers least. Pruned to density "
        f"{density:.2g}, the model diverges from its unpruned self, in nats per token on "
        f"{measured.prompts} prompts, by {numbers}. Only scores tell how much skill that costs."
    )


def _verdict_by_evidence(found: ModelAnalysis) -> str:
    """Return the verdict on one model from what was measured of others."""
    for method in RESCALED:
        largest, kept = bound_noise(method)
        if found.noise <= largest:
            return (
                f"{_conclude(method)}: at density {found.density:.2g}, the noise of DARE's "
                f"rescaling is {found.noise:.2g} of the base's weights (its deltas deviate by "
                f"{found.offsets.relative:.2g}), and up to a noise of {largest:.2g}, {method} kept "
                f"{_range(kept)} of all models that were measured."
            )
    return _verdict_by_magnitude(found.offsets.relative, found.density)


def _conclude(method: str) -> str:
    """Return that a method would do, and whether the simplest one may not."""
    plain = METHODS[0]
    return f"{method} would probably do" + ("" if method == plain else f", {plain} may not")


def _verdict_by_magnitude(relative: float, density: float) -> str:
    """Return the verdict on a model on which the noise of DARE's rescaling is too large."""
    like = _most_like(relative)
    rows = [measured.kept[nearest_density(measured, density)] for measured in like]
    beyond = relative > LIKE * like[-1].relative
    lower = any(density * LIKE < min(measured.kept) for measured in like)
    least = {
        method: min(row[method][0] for row in rows)
        for method in METHODS
        if method not in RESCALED and all(method in row for row in rows)
    }
    chosen = next((method for method in least if least[method] >= WOULD_DO), None)
    conclusion = "No method is sure to do at this density; prune less"
    if chosen is not None:
        sure = "may do" if beyond or lower else "would probably do"
        conclusion = f"{chosen} {sure}, {METHODS[0]} may not"
    best = chosen or max(least, key=lambda method: least[method])
    parts = [
        f"{measured.what} ({measured.relative:g}), of which {best} kept {_range(row[best])} at "
        f"density {nearest_density(measured, density):g}"
        for measured, row in zip(like, rows, strict=True)
    ]
    place = "about as much as those of"
    if len(like) > 1:
        place = "between those of"
    elif beyond:
        place = "more than any that were measured; the nearest are"
    return (
        f"{conclusion}: its deltas deviate by {relative:.2g} of the base's weights, {place} "
        f"{', and '.join(parts)}; the noise of DARE's rescaling is "
        f"{noise_of(relative, density):.2g} of the weights."
        + (" No density as low was measured." if lower else "")
    )


def _most_like(relative: float) -> list[Pruned]:
    """Return the models of which the deltas are as large, or the next smaller and larger ones."""
    nearest = min(PRUNED, key=lambda measured: abs(math.log(relative / measured.relative)))
    if 1 / LIKE <= relative / nearest.relative <= LIKE:
        return [nearest]
    smaller = [measured for measured in PRUNED if measured.relative < relative]
    larger = [measured for measured in PRUNED if measured.relative > relative]
    return [*smaller[-1:], *larger[:1]]


def nearest_density(measured: Pruned, density: float) -> float:
    """Return the density that was measured and is nearest."""
    return min(measured.kept, key=lambda known: abs(math.log(known / density)))


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
    best = min(merges, key=lambda merge: merge.mean)
    numbers = ", ".join(
        f"{merge.mean:.3g} {merge.combination} ({merge.method}"
        + ("" if merge.weight is None else f", weight {merge.weight:g}")
        + ")"
        for merge in merges
    )
    return (
        f"Combine {best.combination} ({best.method}): of all merges it diverges least from the "
        f"models on their own prompts. In nats per token, the mean over models: {numbers}."
    )


def _combine_by_evidence(relative: float, models: int) -> str:
    """Return the verdict on a merge from what was measured of others.

    Combining by inputs was ahead of every sum, or level with it, and no quantity of the deltas was
    found that tells by how much (examples/paper/tables/rule.md). So the advice is the same for all;
    the merges whose deltas are as large stand beside it.
    """
    nearest = min(MERGED, key=lambda merged: _far(merged, relative, models))
    leads = [lead for merged in MERGED for lead in merged.lead]
    behind = [
        merged.combinations[SUM][1] - merged.combinations[SIGNS][1]
        for merged in MERGED
        if SIGNS in merged.combinations
    ]
    return (
        f"Combine by inputs (dppa_regmean or dare_regmean, with prompts): in "
        f"{sum(merged.merges for merged in MERGED)} merges the best one by inputs kept from "
        f"{-min(leads)} points less than the best sum with one weight a model to {max(leads)} "
        f"more, and in {len(behind)} merges TIES kept {min(behind)} to {max(behind)} points less "
        f"than that sum. The nearest merge that was measured, of {_describe(nearest)}. No "
        f"quantity of the deltas was found that foretells the gain, and no base above 135 M "
        f"parameters was measured; --prompts measures yours."
    )


def _describe(measured: Merged) -> str:
    """Return what was merged, and what its combinations kept, by inputs first."""
    order = (INPUTS, LEARNED_INPUTS, LEARNED, SUM, SIGNS)
    kept = ", ".join(
        f"{_range(measured.combinations[by])} {by}" for by in order if by in measured.combinations
    )
    return f"{measured.what} ({measured.relative:g}), kept {kept}"


def _far(measured: Merged, relative: float, models: int) -> tuple[float, int, float]:
    """Return how far a merge is from another: by its number of models where deltas are alike."""
    ratio = abs(math.log(measured.relative / relative))
    return (0.0 if ratio <= math.log(LIKE) else ratio), abs(measured.models - models), ratio


def describe_kept(kept: Kept | None) -> str:
    """Return shares that were kept as text, without a unit; empty for None."""
    if kept is None:
        return ""
    least, largest = kept
    return str(largest) if least == largest else f"{least} to {largest}"


def _range(kept: Kept) -> str:
    return f"{describe_kept(kept)} %"
