"""Evaluation tables: scores, Task-Ratios and Domain-Ratios (eqs. 7, 8) of several models.

Nothing here is measured: the tables take what was, or numbers that someone else printed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dppa_mergekit.report.markdown_tables import table, with_error
from dppa_mergekit.scoring.ratios import (
    Estimate,
    Scores,
    domain_ratio,
    ratio_estimate,
    task_ratio,
)

FILE = "evaluation"
"""The name of what `evaluate` writes, before its ending."""

TUNED_ON = "*"
"""Marks a task that something was tuned on."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of several models on the tasks of several domains.

    Attributes:
        domains: Domain -> its tasks.
        guard: Tasks of what the base can do.
        dense: Task -> score of the fine-tuned model of the task's domain.
        models: Name -> its scores on all tasks.
        tuned_on: Tasks by which factors or weights were chosen.
        missing: Models that are not scored yet, of domains too.
    """

    domains: Mapping[str, Sequence[str]]
    guard: Sequence[str]
    dense: Scores
    models: Mapping[str, Scores]
    tuned_on: frozenset[str] = frozenset()
    missing: Sequence[str] = ()

    @property
    def tasks(self) -> list[str]:
        """All tasks, domain by domain, the guard's last."""
        return [*(task for tasks in self.domains.values() for task in tasks), *self.guard]

    def task_ratio(self, model: str, task: str) -> float:
        """Score over that of the fine-tuned model, in percent."""
        return 100 * task_ratio(self.models[model][task], self.dense[task].value)

    def domain_ratio(self, model: str, domain: str) -> Estimate:
        """The Domain-Ratio in percent; with its error, where items are known."""
        scores = {task: self.models[model][task] for task in self.domains[domain]}
        dense = {task: self.dense[task].value for task in scores}
        if all(score.items for score in scores.values()):
            return ratio_estimate(scores, dense)
        return Estimate(domain_ratio(scores, dense))

    def mean_ratio(self, model: str) -> Estimate:
        """The mean of the Domain-Ratios; domains have no items in common."""
        ratios = [self.domain_ratio(model, domain) for domain in self.domains]
        errors = [each.error for each in ratios if each.error is not None]
        error = math.hypot(*errors) / len(ratios) if len(errors) == len(ratios) else None
        return Estimate(math.fsum(each.value for each in ratios) / len(ratios), error)


def as_markdown(found: Evaluation) -> str:
    """Two tables: scores with standard errors, and ratios in percent."""
    marked = {task: task + TUNED_ON * (task in found.tuned_on) for task in found.tasks}
    own = [task for tasks in found.domains.values() for task in tasks]
    scores = table(
        ["model", *marked.values()],
        [
            [name, *(with_error(scores[task].value, scores[task].error, 3) for task in found.tasks)]
            for name, scores in found.models.items()
        ],
    )
    ratios = table(
        ["model", *(marked[task] for task in own), *found.domains, "mean"],
        [
            [
                name,
                *(f"{found.task_ratio(name, task):.1f}" for task in own),
                *(str(found.domain_ratio(name, domain)) for domain in found.domains),
                str(found.mean_ratio(name)),
            ]
            for name in found.models
        ],
    )
    notes = [f"{TUNED_ON} Factors or weights were chosen on this task."] if found.tuned_on else []
    if found.missing:
        notes.append(f"Not scored yet: {', '.join(found.missing)}.")
    return (
        f"Scores, with standard errors.\n\n{scores}\n"
        f"Task-Ratios and Domain-Ratios, in percent of the fine-tuned models, whose own scores are "
        f"taken as known.\n\n{ratios}" + "".join(f"\n{note}\n" for note in notes)
    )


def as_plain(found: Evaluation) -> dict[str, object]:
    """The same as plain data."""

    def estimate(value: Estimate) -> dict[str, float | None]:
        return {"value": value.value, "error": value.error}

    def scores(of_model: Scores) -> dict[str, object]:
        return {
            task: {"value": score.value, "error": score.error, "items": len(score.items)}
            for task, score in of_model.items()
        }

    return {
        "domains": {name: list(tasks) for name, tasks in found.domains.items()},
        "guard": list(found.guard),
        "tuned_on": sorted(found.tuned_on),
        "missing": list(found.missing),
        "dense": scores(found.dense),
        "models": {
            name: {
                "scores": scores(of_model),
                "task_ratios": {
                    task: found.task_ratio(name, task)
                    for tasks in found.domains.values()
                    for task in tasks
                },
                "domain_ratios": {
                    domain: estimate(found.domain_ratio(name, domain)) for domain in found.domains
                },
                "mean_ratio": estimate(found.mean_ratio(name)),
            }
            for name, of_model in found.models.items()
        },
    }
