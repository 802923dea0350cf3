"""From a tasks file to the objective of a merge, and to the scores of its models before merging.

The models before merging are the fine-tuned models, each scored on the dev tasks of its domains,
and the base model, scored on the dev tasks of the guard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.objectives import DomainObjective, MergeObjective
from dppa_mergekit.scoring.ratios import Items, Score, Scores
from dppa_mergekit.scoring.tasks import TasksFile

Experts: TypeAlias = Mapping[str, Sequence[str]]
"""Model before merging -> the tasks whose ratios are relative to its scores."""


def experts_of(tasks: TasksFile, recipe: Recipe) -> Experts:
    """Return the fine-tuned models of a recipe with their domains' dev tasks, and the base.

    The base model, if the guard has dev tasks, comes with these.
    """
    experts: dict[str, list[str]] = {}
    for domain in tasks.domains.values():
        experts.setdefault(recipe.spelling_of(domain.model), []).extend(domain.dev)
    if tasks.guard.dev:
        experts[recipe.base] = list(tasks.guard.dev)
    return experts


def objective_of(
    tasks: TasksFile,
    fine_tuned_scores: Mapping[str, float],
    worst: bool = False,
    guard_loss: float = 0.05,
) -> MergeObjective:
    """Return the objective by which merges are compared on the dev tasks of all domains.

    Args:
        tasks: The tasks file.
        fine_tuned_scores: Task -> score of its domain's fine-tuned model, or, of a guard task, of
            the base model; above 0.
        worst: Whether the lowest Domain-Ratio counts instead of the mean.
        guard_loss: The share of the base model's scores that may be lost on guard tasks.
    """
    domains = {
        name: DomainObjective({task: fine_tuned_scores[task] for task in domain.dev})
        for name, domain in tasks.domains.items()
    }
    guard = {task: fine_tuned_scores[task] for task in tasks.guard.dev}
    return MergeObjective(domains, worst, guard, guard_loss)


def score_experts(experts: Experts, items: Items, score: Callable[[str, Items], Scores]) -> Scores:
    """Score the models before merging, each on its own tasks.

    Args:
        experts: The models with their tasks.
        items: Task -> indices of the items to score.
        score: Scores a model, by its name, on items.
    """
    found: dict[str, Score] = {}
    for model, tasks in experts.items():
        found.update(score(model, {task: items[task] for task in tasks}))
    return found
