"""The result of a search in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from dppa_mergekit.parameters import AMPLIFICATION_NAMES
from dppa_mergekit.recipes.recipe import Setting
from dppa_mergekit.report.markdown_tables import table
from dppa_mergekit.search.results import SearchResult
from dppa_mergekit.search.strategies import BOTH, MERGE_FACTORS, OF_ONE_MODEL, WEIGHTS
from dppa_mergekit.search.weight_trials import SHARED


def summary(results: Sequence[SearchResult], strategy: str) -> str:
    """Return tables of the factors or weights, and of the dev Domain-Ratios."""
    if strategy == MERGE_FACTORS:
        title, settings = "Amplification factors in the merge", _factors_in_merge(results[0])
    elif strategy == BOTH:
        title = "Weights and amplification factors of the merge"
        settings = f"{_weights(results[0])}\n{_factors_in_merge(results[0])}"
    elif strategy == WEIGHTS:
        title, settings = "Weights of the merge", _weights(results[0])
    else:
        title, settings = "Amplification factors", _factors(results)
    before = "factors 1" if strategy in OF_ONE_MODEL else "the recipe's merge"
    return (
        f"# {title}, by search (strategy {strategy})\n\n{settings}\n"
        f"Dev Domain-Ratio in percent of the fine-tuned model, with its standard error: 'before' "
        f"is {before}, 'tuned' is the result. The result was chosen on these tasks, and one that "
        f"is worse on the items that only confirm is rejected, so both gains are optimistic.\n\n"
        f"{_ratios(results)}"
    )


def _ratios(results: Sequence[SearchResult]) -> str:
    rows = [
        [
            result.domain,
            str(result.before),
            str(result.after),
            ""
            if result.confirmed is None
            else f"{result.confirmed[1].value - result.confirmed[0].value:+.1f}",
            str(result.evaluations),
            f"{result.seconds:.0f} s",
        ]
        for result in results
    ]
    parts = [
        [name, str(before), str(after), "", "", ""]
        for result in results
        for name, (before, after) in result.parts.items()
    ]
    head = ["domain", "before", "tuned", "gain on items that only confirm", "candidates", "time"]
    return table(head, rows + parts)


def _factors(results: Sequence[SearchResult]) -> str:
    names = list(dict.fromkeys(name for result in results for name in result.factors))
    rows = [
        [
            result.domain,
            result.model,
            *(
                format_setting(result.factors[name]) if name in result.factors else ""
                for name in names
            ),
        ]
        for result in results
    ]
    return table(["domain", "model", *names], rows, names=2)


def _weights(result: SearchResult) -> str:
    rows = [
        ["every model" if name == SHARED else name, format_setting(weight)]
        for name, weight in result.factors.items()
        if not _is_factor(name)
    ]
    return table(["model", "weight"], rows)


def _factors_in_merge(result: SearchResult) -> str:
    if not any(map(_is_factor, result.factors)):
        return "The recipe's own factors, or those that the merge finds itself, are best.\n"
    rows = [
        [*name.rpartition(" ")[::2], format_setting(factor)]
        for name, factor in result.factors.items()
        if _is_factor(name)
    ]
    return table(["model", "parameter", "factor"], rows, names=2)


def _is_factor(name: str) -> bool:
    """Return whether a setting of a merge is a model's factor, and not its weight."""
    return name.rpartition(" ")[2] in AMPLIFICATION_NAMES.values()


def format_setting(setting: Setting) -> str:
    """Return a factor or weight as text; the range of the factors for each block."""
    if isinstance(setting, (int, float)):
        return f"{setting:g}"
    return f"{min(setting):.2f} to {max(setting):.2f}"
