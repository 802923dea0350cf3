"""The result of a search in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from dppa_mergekit.recipes import Setting
from dppa_mergekit.report.markdown_tables import table
from dppa_mergekit.search.candidate_search import MERGE, SearchResult
from dppa_mergekit.search.weight_trials import SHARED


def summary(found: Sequence[SearchResult], strategy: str) -> str:
    """Tables of factors and of dev Domain-Ratios, for people."""
    weights = found[0].domain == MERGE
    what = "Weights of the merge" if weights else "Amplification factors"
    settings = _weights(found[0]) if weights else _factors(found)
    ratios = table(
        ["domain", "before", "tuned", "gain on items that only confirm", "candidates", "time"],
        [
            [
                each.domain,
                str(each.before),
                str(each.after),
                ""
                if each.confirmed is None
                else f"{each.confirmed[1].value - each.confirmed[0].value:+.1f}",
                str(each.evaluations),
                f"{each.seconds:.0f} s",
            ]
            for each in found
        ]
        + [
            [name, str(before), str(after), "", "", ""]
            for each in found
            for name, (before, after) in each.parts.items()
        ],
    )
    return (
        f"# {what}, by search (strategy {strategy})\n\n{settings}\n"
        f"Dev Domain-Ratio in percent of the fine-tuned model, with its standard error: at factors "
        f"1 or the recipe's weights, and as tuned. The choice was made on these tasks; on "
        f"the items that only confirm, it may not be worse, so that their gain leans upwards.\n\n"
        f"{ratios}"
    )


def _factors(found: Sequence[SearchResult]) -> str:
    names = list(dict.fromkeys(name for each in found for name in each.factors))
    rows = [
        [
            each.domain,
            each.model,
            *(written(each.factors[name]) if name in each.factors else "" for name in names),
        ]
        for each in found
    ]
    return table(["domain", "model", *names], rows, names=2)


def _weights(found: SearchResult) -> str:
    rows = [
        ["every model" if name == SHARED else name, written(weight)]
        for name, weight in found.factors.items()
    ]
    return table(["model", "weight"], rows)


def written(factor: Setting) -> str:
    """A factor, or the range of those for each block."""
    if isinstance(factor, (int, float)):
        return f"{factor:g}"
    return f"{min(factor):.2f} to {max(factor):.2f}"
