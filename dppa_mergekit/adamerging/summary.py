"""Learned coefficients as Markdown tables."""

from __future__ import annotations

from statistics import mean

from dppa_mergekit.adamerging.states import LearningResult
from dppa_mergekit.report.markdown_tables import table

_OVER = {
    "model": "Of",
    "block": "Means over blocks, of",
    "linear": "Means over linears, of",
    "partition": "Means over linears, of",
}
"""Granularity -> how a sentence on the numbers begins."""


def learning_summary(result: LearningResult, objective: str, granularity: str) -> str:
    """Return tables of the coefficients and, if there are dev scores, of the dev Domain-Ratios."""
    first, best, last = result.states[0], result.best, result.states[-1]
    learned = table(
        ["model", "learned", "start", "mean", "least", "largest"],
        [
            [
                row.model,
                row.name,
                f"{mean(before):.3f}",
                f"{mean(values):.3f}",
                f"{min(values):.3f}",
                f"{max(values):.3f}",
            ]
            for row, values, before in zip(
                result.rows, best.settled, first.coefficients, strict=True
            )
        ],
        names=2,
    )
    text = (
        f"# {result.words.capitalize()} by AdaMerging (objective {objective}, granularity "
        f"{granularity})\n\n{learned}\n"
        f"{_OVER[granularity]} the state after {best.step} of {last.step} steps; "
        f"{last.seconds:.0f} s.\n"
    )
    if first.evaluation is None or best.evaluation is None:
        return text
    ratios = table(
        ["domain", "start", "learned"],
        [
            ["mean", str(first.evaluation.estimate), str(best.evaluation.estimate)],
            *(
                [name, str(first.evaluation.parts[name]), str(part)]
                for name, part in best.evaluation.parts.items()
            ),
        ],
    )
    return (
        f"{text}\nDev Domain-Ratio in percent of the fine-tuned models, with its standard error. "
        f"These tasks chose the state among {len(result.states)}.\n\n{ratios}"
    )
