"""Merges by their dev tasks: on what unmerged models are scored, and how merges compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from dppa_mergekit.recipes import Recipe
from dppa_mergekit.scoring.ratios import DomainObjective, Items, MergeObjective, Scores
from dppa_mergekit.scoring.tasks import TasksFile

Experts: TypeAlias = Mapping[str, Sequence[str]]
"""Model -> the tasks that it is the measure of: a domain's own, or, of the base, the guards."""


def experts_of(tasks: TasksFile, recipe: Recipe) -> Experts:
    """What the fine-tuned models of a recipe, and its base, are scored on: dev tasks."""
    experts: dict[str, list[str]] = {}
    for domain in tasks.domains.values():
        experts.setdefault(recipe.named(domain.model), []).extend(domain.dev)
    if tasks.guard.dev:
        experts[str(recipe.content["base_model"])] = list(tasks.guard.dev)
    return experts


def objective_of(
    tasks: TasksFile,
    dense: Mapping[str, float],
    worst: bool = False,
    guard_loss: float = 0.05,
) -> MergeObjective:
    """By what merges are compared on the dev tasks of all domains.

    Args:
        tasks: The tasks file.
        dense: Task -> score of the unmerged models.
        worst: By the least Domain-Ratio, in place of the mean.
        guard_loss: The share of the base model's scores that may be lost on guard tasks.
    """
    domains = {
        name: DomainObjective({task: dense[task] for task in domain.dev})
        for name, domain in tasks.domains.items()
    }
    guard = {task: dense[task] for task in tasks.guard.dev}
    return MergeObjective(domains, worst, guard, guard_loss)


def score_experts(experts: Experts, items: Items, score: Callable[[str, Items], Scores]) -> Scores:
    """Score the unmerged models, each on its own tasks."""
    scores = [
        score(model, {task: items[task] for task in tasks}) for model, tasks in experts.items()
    ]
    return {task: each[task] for each in scores for task in each}
