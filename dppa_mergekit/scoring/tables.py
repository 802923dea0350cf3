"""Evaluation tables: scores, Task-Ratios (eq. 7) and Domain-Ratios (eq. 8) of several models.

Nothing is measured here: the tables take measured scores, or scores printed elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dppa_mergekit.report.markdown_tables import table, with_error
from dppa_mergekit.scoring.ratios import (
    Estimate,
    Score,
    Scores,
    estimate_domain_ratio,
    mean_estimate,
    task_ratio,
)

FILE = "evaluation"
"""The name, without suffix, of the files that `evaluate` writes."""

SEEN = "*"
"""Marks a task on which factors or weights were chosen."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of several models on the tasks of several domains.

    Attributes:
        domains: Domain -> its tasks.
        guard: Tasks that the base model can do.
        fine_tuned_scores: Task -> score of the fine-tuned model of the task's domain.
        models: Name -> its scores on all tasks.
        seen_tasks: Tasks on which factors or weights were chosen.
        missing: Models that are not scored yet; those of the domains count too.
    """

    domains: Mapping[str, Sequence[str]]
    guard: Sequence[str]
    fine_tuned_scores: Scores
    models: Mapping[str, Scores]
    seen_tasks: frozenset[str] = frozenset()
    missing: Sequence[str] = ()

    @property
    def domain_tasks(self) -> list[str]:
        """The tasks that have ratios: all but the guard's, domain by domain."""
        return [task for tasks in self.domains.values() for task in tasks]

    @property
    def tasks(self) -> list[str]:
        """All tasks, domain by domain, the guard's last."""
        return [*self.domain_tasks, *self.guard]

    def task_ratio(self, model: str, task: str) -> float:
        """Return the Task-Ratio (eq. 7) of a model, in percent."""
        return 100 * task_ratio(self.models[model][task], self.fine_tuned_scores[task].value)

    def domain_ratio(self, model: str, domain: str) -> Estimate:
        """Return the Domain-Ratio (eq. 8) of a model in percent, with its error if known."""
        scores = {task: self.models[model][task] for task in self.domains[domain]}
        fine_tuned_scores = {task: self.fine_tuned_scores[task].value for task in scores}
        return estimate_domain_ratio(scores, fine_tuned_scores)

    def mean_ratio(self, model: str) -> Estimate:
        """Return the mean of a model's Domain-Ratios; domains have no items in common."""
        return mean_estimate([self.domain_ratio(model, domain) for domain in self.domains])


def as_markdown(found: Evaluation) -> str:
    """Return two Markdown tables: scores with standard errors, and ratios in percent."""
    headings = {task: task + SEEN * (task in found.seen_tasks) for task in found.tasks}
    scores = table(
        ["model", *headings.values()],
        [
            [name, *(with_error(scores[task].value, scores[task].error, 3) for task in found.tasks)]
            for name, scores in found.models.items()
        ],
    )
    ratios = table(
        ["model", *(headings[task] for task in found.domain_tasks), *found.domains, "mean"],
        [
            [
                name,
                *(f"{found.task_ratio(name, task):.1f}" for task in found.domain_tasks),
                *(str(found.domain_ratio(name, domain)) for domain in found.domains),
                str(found.mean_ratio(name)),
            ]
            for name in found.models
        ],
    )
    notes = [f"{SEEN} Factors or weights were chosen on this task."] if found.seen_tasks else []
    if found.missing:
        notes.append(f"Not scored yet: {', '.join(found.missing)}.")
    return (
        f"Scores, with standard errors.\n\n{scores}\n"
        f"Task-Ratios and Domain-Ratios, in percent of the fine-tuned models' scores. The errors "
        f"take these scores as exact.\n\n{ratios}" + "".join(f"\n{note}\n" for note in notes)
    )


def as_plain(found: Evaluation) -> dict[str, object]:
    """Return the scores and ratios as plain data, for `evaluation.json`.

    The keys "dense" (the fine-tuned models' scores) and "tuned_on" (the seen tasks) stand in files
    that users have, and stay for their sake.
    """
    return {
        "domains": {name: list(tasks) for name, tasks in found.domains.items()},
        "guard": list(found.guard),
        "tuned_on": sorted(found.seen_tasks),
        "missing": list(found.missing),
        "dense": _plain_scores(found.fine_tuned_scores),
        "models": {
            name: {
                "scores": _plain_scores(scores),
                "task_ratios": {task: found.task_ratio(name, task) for task in found.domain_tasks},
                "domain_ratios": {
                    domain: _plain_estimate(found.domain_ratio(name, domain))
                    for domain in found.domains
                },
                "mean_ratio": _plain_estimate(found.mean_ratio(name)),
            }
            for name, scores in found.models.items()
        },
    }


def _plain_estimate(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "error": estimate.error}


def _plain_scores(scores: Mapping[str, Score]) -> dict[str, object]:
    return {
        task: {"value": score.value, "error": score.error, "items": len(score.items)}
        for task, score in scores.items()
    }
