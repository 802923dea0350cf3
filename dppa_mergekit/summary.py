"""What a search found, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from dppa_mergekit.search import Tuned


def summary(found: Sequence[Tuned], strategy: str) -> str:
    """Tables of factors and of dev Domain-Ratios, for people."""
    names = list(dict.fromkeys(name for each in found for name in each.factors))
    factors = _table(
        ["domain", "model", *names],
        [
            [
                each.domain,
                each.model,
                *(f"{each.factors[n]:g}" if n in each.factors else "" for n in names),
            ]
            for each in found
        ],
    )
    ratios = _table(
        ["domain", "factors 1", "tuned", "gain on items that did not choose", "candidates", "time"],
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
        ],
    )
    return (
        f"# Amplification factors, by search (strategy {strategy})\n\n{factors}\n"
        f"Dev Domain-Ratio in percent of the fine-tuned model, with its standard error. The "
        f"factors were chosen on these tasks.\n\n{ratios}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
