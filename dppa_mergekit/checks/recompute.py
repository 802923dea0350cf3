"""Tensors of a merged folder, computed again from its recipe and compared byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from dppa_mergekit.checks.checkpoint_files import of_folder
from dppa_mergekit.checks.findings import Finding, error, note, warning
from dppa_mergekit.checks.merged_folder import RECIPE, recipe_of
from dppa_mergekit.errors import first_line

if TYPE_CHECKING:
    from mergekit.graph import Task

RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
"""Methods of mergekit's that draw random numbers anew in every run."""

SAMPLE = 8
"""How many tensors are computed again, if not all."""


def verified(folder: Path, every: bool) -> Iterator[Finding]:
    """Whether the weights are those of the recipe in the folder.

    Args:
        folder: With the recipe that mergekit leaves; the paths in it count from here.
        every: All tensors, and not a sample.
    """
    from dppa_mergekit.merging.dry_run import dry_run_again

    where = str(folder)
    recipe = recipe_of(folder) or {}
    if recipe.get("merge_method") in RANDOM:
        yield warning(
            where,
            f"{recipe['merge_method']} draws other random numbers in every run: its weights "
            f"cannot be verified.",
        )
        return
    try:
        with dry_run_again(folder / RECIPE) as planned:
            yield from _compared(folder, planned.tasks, every)
    # Beside a DppaError, whatever mergekit, its methods, safetensors or torch raise where inputs
    # are damaged or not what they were.
    except Exception as problem:
        yield error(where, f"its recipe cannot be merged again: {first_line(problem)}.")


def _compared(folder: Path, planned: Sequence[Task[object]], every: bool) -> Iterator[Finding]:
    """Whether what the tasks compute is what the folder holds."""
    from mergekit.common import dtype_from_name
    from mergekit.graph import Executor
    from mergekit.io.tasks import SaveTensor

    where = str(folder)
    writes = {
        task.tensor_task: (task.tensor_name, task.dtype)
        for task in planned
        if isinstance(task, SaveTensor)
    }
    targets = list(writes)
    chosen = targets if every else Random(0).sample(targets, min(SAMPLE, len(targets)))
    checkpoint, _ = of_folder(folder, where)
    different: list[str] = []
    compared = 0
    for task, tensor in Executor(chosen, math_device=torch.device("cpu")).run(quiet=True):
        name, dtype = writes[task]
        stored = checkpoint.tensors.get(name)
        if stored is None or tensor is None:
            continue
        compared += 1
        if dtype is not None:
            tensor = tensor.to(dtype_from_name(dtype))
        with safe_open(folder / stored.file, framework="pt") as file:
            found = file.get_tensor(name)
        if found.dtype != tensor.dtype or not _equal(found, tensor):
            different.append(name)
    if different:
        yield error(
            where,
            f"{len(different)} of {compared} tensors are not what its recipe gives, such as "
            f"{min(different)}: they are of another merge, or its inputs have changed.",
        )
    else:
        yield note(where, f"{compared} of {len(targets)} tensors are what its recipe gives.")


def _equal(found: torch.Tensor, computed: torch.Tensor) -> bool:
    """Byte for byte."""
    return found.shape == computed.shape and torch.equal(
        found.contiguous().view(-1).view(torch.uint8),
        computed.contiguous().view(-1).view(torch.uint8),
    )
