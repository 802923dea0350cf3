"""Learned coefficients as Markdown tables."""

from __future__ import annotations

from statistics import mean

from dppa_mergekit.adamerging.states import LearningResult
from dppa_mergekit.report.markdown_tables import table


def learning_summary(result: LearningResult, objective: str) -> str:
    """Return tables of the coefficients and, if there are dev scores, of the dev Domain-Ratios."""
    first, best, last = result.states[0], result.best, result.states[-1]
    learned = table(
        ["model", "start", "learned", "least", "largest"],
        [
            [model, f"{mean(before):.3f}", f"{mean(row):.3f}", f"{min(row):.3f}", f"{max(row):.3f}"]
            for model, before, row in zip(
                result.coefficients, first.coefficients, best.settled, strict=True
            )
        ],
    )
    text = (
        f"# {result.word.capitalize()}s by AdaMerging (objective {objective})\n\n{learned}\n"
        f"Means over blocks, of the state after {best.step} of {last.step} steps; "
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
