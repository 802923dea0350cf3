"""The commands for one recipe, from its check to its publication, and what they need."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from costs import CANDIDATES, LEARNING_RATE, MODEL_BYTES, PICKLED, STEPS, Costs
from model_headers import SHARD_BYTES
from recipe_files import find_recipe, find_tasks, read_recipe


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


def list_steps(name: str, device: str, rate: float, repository: str | None) -> list[Step]:
    """Return all steps for one recipe, in their order.

    Args:
        name: Name of the recipe, without its ending.
        device: Where models are evaluated: cpu, cuda, ...
        rate: New tokens a second, of all the items of a batch together.
        repository: Repository for the upload; None for a dry run of it.
    """
    costs = Costs(name, device, rate)
    models = [model["model"] for model in read_recipe(name)["models"]]
    recipe, tasks = str(find_recipe(name)), str(find_tasks(name))
    factors, weights, merged = f"factors/{name}.yml", f"weights/{name}.yml", f"merged/{name}"
    evaluation = ("--tasks", tasks, "--output")
    on_device = ("--device", device, "--dtype", "float16")
    tool = "mergekit-dppa"
    upload = (repository,) if repository else (f"owner/{name}", "--dry-run")
    return [
        Step((tool, "check", recipe, "--output", merged), "", 60),
        Step(
            (tool, "analyze", recipe, "--output", f"analysis/{name}"),
            f"analysis/{name}",
            1.5 * costs.merge_seconds,
            costs.reading_memory + PICKLED,
        ),
        Step(
            (
                *(tool, "search", recipe, *evaluation, factors),
                *("--max-evaluations", str(CANDIDATES), *on_device),
            ),
            factors,
            costs.search_seconds,
            *costs.search_memory,
            MODEL_BYTES,
        ),
        Step(
            (
                *(tool, "adamerge", factors, *evaluation, weights),
                *("--steps", str(STEPS), "--lr", f"{LEARNING_RATE:g}"),
                *("--gradient-checkpointing", *on_device),
            ),
            weights,
            costs.adamerge_seconds,
            *costs.adamerge_memory,
            MODEL_BYTES,
        ),
        Step(
            ("mergekit-yaml", weights, merged, "--lazy-unpickle"),
            merged,
            costs.merge_seconds,
            costs.reading_memory + SHARD_BYTES,
            disk=MODEL_BYTES,
        ),
        Step((tool, "check", merged, "--verify", "sample"), "", 60, 2e9 + PICKLED),
        Step(
            (tool, "evaluate", *models, merged, *evaluation, merged, *on_device),
            f"{merged}/evaluation.json",
            costs.evaluate_seconds,
            *costs.evaluate_memory,
        ),
        Step(
            # Abel's repository has no card, and so names no licence.
            (tool, "publish", merged, *upload, "--recipe", weights, "--license", "llama2"),
            "",
            60 if repository is None else MODEL_BYTES / 5e7,
        ),
    ]


def format_duration(seconds: float) -> str:
    """Return a time in minutes, or in hours from two hours on."""
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
