"""Learned weights in Markdown."""

from __future__ import annotations

from statistics import mean

from dppa_mergekit.adamerging.states import Learned
from dppa_mergekit.report.markdown_tables import table


def learning_summary(found: Learned, objective: str) -> str:
    """Tables of weights, and of dev Domain-Ratios where there are any, for people."""
    first, best, last = found.states[0], found.best, found.states[-1]
    weights = table(
        ["model", "start", "learned", "least", "largest"],
        [
            [model, f"{mean(before):.3f}", f"{mean(row):.3f}", f"{min(row):.3f}", f"{max(row):.3f}"]
            for model, before, row in zip(found.weights, first.weights, best.settled, strict=True)
        ],
    )
    text = (
        f"# Weights by AdaMerging (objective {objective})\n\n{weights}\n"
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
        f"The state was chosen by these tasks, among {len(found.states)}.\n\n{ratios}"
    )
