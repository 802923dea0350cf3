"""The commands for one recipe, from its check to its publication, and what they need."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from costs import CANDIDATES, STEPS, Costs
from model_sets import ModelSet
from stored_models import SHARD_BYTES

TOOL = "mergekit-dppa"

WEIGHT_RATE, FACTOR_RATE = 5e-3, 1e-2
"""About the largest move of a learned weight, and of a learned factor, in a step."""


@dataclass(frozen=True)
class Step:
    """One command and what it needs.

    Attributes:
        command: The command as typed.
        writes: The file or folder that it writes; empty for none.
        seconds: Estimated time.
        memory: Bytes of memory at its peak.
        device_memory: Bytes of GPU memory at its peak; 0 if it uses no GPU.
        disk: Bytes that it leaves on disk, or needs meanwhile.
    """

    command: tuple[str, ...]
    writes: str
    seconds: float
    memory: float = 0
    device_memory: float = 0
    disk: float = 0

    @property
    def needs(self) -> tuple[str, str, str, str]:
        """Memory, GPU memory, disk and time as texts; empty for less than half a gigabyte."""
        amounts = (self.memory, self.device_memory, self.disk)
        memory, device_memory, disk = (
            f"{amount / 1e9:.0f} GB" if amount >= 0.5e9 else "" for amount in amounts
        )
        return memory, device_memory, disk, format_duration(self.seconds)

    def __str__(self) -> str:
        names = ("of memory", "on the GPU", "of disk", "")
        needs = [
            f"{need} {name}".rstrip() for need, name in zip(self.needs, names, strict=True) if need
        ]
        return f"{shlex.join(self.command)}\n    # about {', '.join(needs)}"


@dataclass(frozen=True)
class Paths:
    """The files of one recipe, within the folder of a run.

    Attributes:
        recipe: Name of the recipe.
        pool: Name of its pool.
    """

    recipe: str
    pool: str

    @property
    def start(self) -> str:
        """The recipe itself."""
        return f"recipes/{self.recipe}.yml"

    @property
    def tasks(self) -> str:
        """The tasks file."""
        return f"tasks/{self.pool}.yml"

    @property
    def prompts(self) -> str:
        """The folder of the prompts of all domains."""
        return f"prompts/{self.pool}"

    @property
    def tuned(self) -> str:
        """The recipe with factors, or with activations."""
        return f"tuned/{self.recipe}.yml"

    @property
    def learned(self) -> str:
        """The recipe that is merged."""
        return f"learned/{self.recipe}.yml"

    @property
    def merged(self) -> str:
        """The folder of the merge."""
        return f"merged/{self.recipe}"


def list_steps(
    model_set: ModelSet, name: str, device: str, rate: float, repository: str | None
) -> list[Step]:
    """Return all steps for one recipe, in their order.

    Args:
        model_set: The set of models.
        name: Name of the recipe.
        device: Where models are evaluated: cpu, cuda, ...
        rate: New tokens a second, of all the items of a batch together.
        repository: Repository for the upload; None for a dry run of it.
    """
    costs = Costs(model_set, name, device, rate)
    paths = Paths(name, model_set.pool_name(name))
    on_device = ("--device", device, "--dtype", model_set.dtype)
    analysis = f"analysis/{name}"
    return [
        Step((TOOL, "check", paths.start, "--output", paths.merged), "", 60),
        Step(
            (TOOL, "analyze", paths.start, "--output", analysis),
            analysis,
            1.5 * costs.sum_seconds,
            costs.reading_memory + costs.pickled_bytes,
        ),
        *_list_tuning(model_set, costs, paths, on_device),
        *_list_merging(model_set, costs, paths, on_device, repository),
    ]


def _list_tuning(
    model_set: ModelSet, costs: Costs, paths: Paths, on_device: tuple[str, ...]
) -> list[Step]:
    """Return the steps from the recipe to the one that is merged."""
    pool, by_inputs = model_set.pool(costs.name), model_set.variant(costs.name).by_inputs
    tasks = ("--tasks", paths.tasks)
    prompts = tuple(
        argument
        for expert in pool.experts
        for argument in ("--prompts", f"{paths.prompts}/{expert.rpartition('/')[2]}.jsonl")
    )
    write_prompts = Step(
        ("python", str(model_set.prompts_script), paths.pool, paths.prompts),
        paths.prompts,
        costs.prompts_seconds,
    )
    observe = Step(
        (TOOL, "activations", paths.start, *prompts, "--output", paths.tuned, *on_device),
        paths.tuned,
        costs.activations_seconds,
        *costs.activations_memory,
        costs.activations_bytes,
    )
    search = Step(
        (
            *(TOOL, "search", paths.start, *tasks, "--output", paths.tuned),
            *("--max-evaluations", str(CANDIDATES), *on_device),
        ),
        paths.tuned,
        costs.search_seconds,
        *costs.search_memory,
        costs.model_bytes,
    )
    searched = pool.has_dev and not by_inputs
    rate = FACTOR_RATE if by_inputs else WEIGHT_RATE
    # Without dev tasks no search finds factors, and AdaMerging learns them with the weights.
    granularity = () if by_inputs or searched else ("--granularity", "partition")
    learn = Step(
        (
            *(TOOL, "adamerge", paths.tuned if by_inputs or searched else paths.start),
            *(tasks if pool.has_dev else prompts),
            *("--output", paths.learned, "--steps", str(STEPS), "--lr", f"{rate:g}"),
            *(*granularity, "--gradient-checkpointing", *on_device),
        ),
        paths.learned,
        costs.adamerge_seconds,
        *costs.adamerge_memory,
        costs.model_bytes if pool.has_dev else 0,
    )
    if searched:
        return [search, learn]
    return [write_prompts, *([observe] if by_inputs else []), learn]


def _list_merging(
    model_set: ModelSet,
    costs: Costs,
    paths: Paths,
    on_device: tuple[str, ...],
    repository: str | None,
) -> list[Step]:
    """Return the steps from the learned recipe to the publication of the merge."""
    pool, merged = model_set.pool(costs.name), paths.merged
    scored = [domain.model for domain in pool.domains.values() if domain.tasks]
    upload = (repository,) if repository else (f"owner/{costs.name}", "--dry-run")
    return [
        Step(
            ("mergekit-yaml", paths.learned, merged, "--lazy-unpickle"),
            merged,
            costs.merge_seconds,
            costs.merge_memory + SHARD_BYTES,
            disk=costs.model_bytes,
        ),
        Step((TOOL, "check", merged, "--verify", "sample"), "", 60, 2e9 + costs.pickled_bytes),
        Step(
            (
                *(TOOL, "evaluate", *scored, merged, "--tasks", paths.tasks),
                *("--output", merged, *on_device),
            ),
            f"{merged}/evaluation.json",
            costs.evaluate_seconds,
            *costs.evaluate_memory,
        ),
        *(
            _run_code(model_set, costs, paths, model, on_device[1])
            for domain in pool.domains.values()
            if domain.code_tasks
            for model in (domain.model, merged)
        ),
        Step(
            (
                *(TOOL, "publish", merged, *upload),
                *("--recipe", paths.learned, "--license", pool.license),
            ),
            "",
            60 if repository is None else costs.model_bytes / 5e7,
        ),
    ]


def _run_code(model_set: ModelSet, costs: Costs, paths: Paths, model: str, device: str) -> Step:
    """Return lm-eval's own command for the tasks that run code, which `evaluate` refuses."""
    tasks = model_set.pool(costs.name).code_tasks
    output = f"code/{paths.recipe}/{model.rpartition('/')[2]}"
    return Step(
        (
            *("lm_eval", "--model", "hf", "--model_args"),
            f"pretrained={model},dtype={model_set.dtype}",
            *("--tasks", ",".join(task.test for task in tasks)),
            *("--batch_size", str(model_set.batch_size), "--device", device),
            *("--output_path", output, "--confirm_run_unsafe_code"),
        ),
        output,
        costs.code_seconds,
        *costs.evaluate_memory,
    )


def format_duration(seconds: float) -> str:
    """Return a time in minutes, or in hours from two hours on."""
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
