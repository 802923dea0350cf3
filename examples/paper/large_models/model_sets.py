"""A set of large models as data: its pools, their domains and tasks, and the recipes of its merges.

A pool is a base model and its experts, one for each domain. Every pool is merged in several
variants. Recipes and tasks files follow from these data, and are written where a run works.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from architectures import Architecture
from stored_models import StoredModel


@dataclass(frozen=True)
class Task:
    """A task, and what it costs to answer its items.

    Attributes:
        test: Name of the test task in lm-eval.
        metric: Its metric, as a tasks file names it.
        items: Items of the test task.
        new_tokens: Tokens of a usual answer to an item; 0 for a task of choices.
        requests: Texts that a model reads for all items of a task of choices.
        request_tokens: Tokens of such a text.
        dev: Name of the dev task; None where there is none.
    """

    test: str
    metric: str
    items: int
    new_tokens: int = 0
    requests: int = 0
    request_tokens: int = 0
    dev: str | None = None


@dataclass(frozen=True)
class Domain:
    """What one expert can do.

    Attributes:
        model: The expert.
        tasks: Tasks that `evaluate` scores; may be empty.
        code_tasks: Tasks that run the code that a model writes, which lm-eval scores.
    """

    model: str
    tasks: tuple[Task, ...]
    code_tasks: tuple[Task, ...] = ()


@dataclass(frozen=True)
class Pool:
    """A base model and its experts.

    Attributes:
        base: The base model.
        domains: Name -> domain.
        license: The licence under which a merge is published.
    """

    base: str
    domains: Mapping[str, Domain]
    license: str

    @property
    def experts(self) -> list[str]:
        """The fine-tuned models."""
        return [domain.model for domain in self.domains.values()]

    @property
    def inputs(self) -> list[str]:
        """The models that a merge reads, the base first."""
        return [self.base, *self.experts]

    @property
    def tasks(self) -> list[Task]:
        """The tasks of all domains that `evaluate` scores."""
        return [task for domain in self.domains.values() for task in domain.tasks]

    @property
    def code_tasks(self) -> list[Task]:
        """The tasks of all domains that run code."""
        return [task for domain in self.domains.values() for task in domain.code_tasks]

    @property
    def has_dev(self) -> bool:
        """Whether every task has a dev task."""
        return all(task.dev is not None for task in self.tasks)


@dataclass(frozen=True)
class Variant:
    """How a pool is merged.

    Attributes:
        density: The share of every delta that is kept.
        by_inputs: Whether deltas are combined by their inputs, and not by a sum.
    """

    density: float
    by_inputs: bool = False


VARIANTS = {"80": Variant(0.2), "90": Variant(0.1), "80_by_inputs": Variant(0.2, by_inputs=True)}
"""Name -> variant. Its number is the pruning rate in percent, as in the paper."""

WEIGHT = 0.3
"""The weight of every model in a sum, from which AdaMerging begins."""


@dataclass(frozen=True)
class ModelSet:
    """Pools of models that are merged and scored alike.

    Attributes:
        folder: The folder of the set.
        models: Name on the Hub -> how the model is published.
        pools: Name -> pool.
        prompts_script: The script that writes the prompts of a pool.
        dtype: The dtype in which models are merged and evaluated.
        batch_size: Texts that are answered, or read, together.
        text_tokens: Tokens of the longest text with its answer.
        tasks_folder: The folder of the set's own tasks; None where they are lm-eval's.
    """

    folder: Path
    models: Mapping[str, StoredModel]
    pools: Mapping[str, Pool]
    prompts_script: Path
    dtype: str
    batch_size: int
    text_tokens: int
    tasks_folder: Path | None = None
    element_bytes: int = field(default=2, init=False)

    @property
    def recipes(self) -> list[str]:
        """The names of all recipes: the pool's, and the variant's."""
        return [f"{pool}_{variant}" for pool in self.pools for variant in VARIANTS]

    def pool_name(self, recipe: str) -> str:
        """Return the name of a recipe's pool."""
        return next(pool for pool in self.pools if recipe.startswith(f"{pool}_"))

    def pool(self, recipe: str) -> Pool:
        """Return the pool of a recipe."""
        return self.pools[self.pool_name(recipe)]

    def variant(self, recipe: str) -> Variant:
        """Return the variant of a recipe."""
        return VARIANTS[recipe.removeprefix(f"{self.pool_name(recipe)}_")]

    def architecture(self, recipe: str) -> Architecture:
        """Return the architecture of a recipe's models."""
        return self.models[self.pool(recipe).base].architecture

    def recipe(self, name: str) -> dict[str, object]:
        """Return the content of a recipe."""
        pool, variant = self.pool(name), self.variant(name)
        # By inputs, the weights are shares, and equal ones are a matter of course.
        weight = {} if variant.by_inputs else {"weight": WEIGHT}
        return {
            "merge_method": "dppa_regmean" if variant.by_inputs else "dppa",
            "base_model": pool.base,
            "models": [
                {"model": expert, "parameters": {**weight, "density": variant.density}}
                for expert in pool.experts
            ],
            "dtype": self.dtype,
            # Experts may have tokens for padding beside the base's.
            "tokenizer": {"source": "base"},
        }

    def tasks_file(self, pool: Pool) -> dict[str, object]:
        """Return the content of a pool's tasks file, without domains that have no tasks."""
        own = self.tasks_folder
        return {
            **({} if own is None else {"include_path": str(own)}),
            "include_defaults": own is None,
            "batch_size": self.batch_size,
            "domains": {
                name: {
                    "model": domain.model,
                    "dev": {task.dev: task.metric for task in domain.tasks if task.dev is not None},
                    "test": {task.test: task.metric for task in domain.tasks},
                }
                for name, domain in pool.domains.items()
                if domain.tasks
            },
        }

    def write_files(self, folder: Path) -> None:
        """Write all recipes to `recipes` and all tasks files to `tasks` in a folder."""
        for name in self.recipes:
            _write_yaml(folder / "recipes" / f"{name}.yml", self.recipe(name))
        for name, pool in self.pools.items():
            _write_yaml(folder / "tasks" / f"{name}.yml", self.tasks_file(pool))


def _write_yaml(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
