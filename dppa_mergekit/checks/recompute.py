"""Tensors of a merged folder, computed again from its recipe and compared byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random, choice
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import safe_open

import dppa_mergekit.methods  # noqa: F401  # registers them where autoload is switched off
from dppa_mergekit.checkpoints.loading_options import LoadingOptions
from dppa_mergekit.checks.checkpoint_files import inspect_folder
from dppa_mergekit.checks.findings import Finding, error, note, warning
from dppa_mergekit.checks.merged_folder import RECIPE, read_recipe
from dppa_mergekit.checks.mergekit_schema import RANDOM_METHODS
from dppa_mergekit.errors import first_line
from dppa_mergekit.merging.dry_run import dry_run_again
from dppa_mergekit.report.phrases import count

if TYPE_CHECKING:
    from mergekit.graph import Task
    from transformers import PreTrainedTokenizerBase

SAMPLE = 8
"""How many tensors are computed again as a sample."""

Extent = Literal["shards", "sample", "all"]
"""Which tensors are computed again: one of each shard, drawn anew each time; `SAMPLE`, the same
each time; or all."""


def verify_tensors(folder: Path, extent: Extent, loading: LoadingOptions) -> Iterator[Finding]:
    """Yield whether the tensors of a merged folder are those that its recipe gives.

    Args:
        folder: With the recipe that mergekit leaves; relative paths in the recipe start from the
            current folder.
        extent: Which tensors are compared.
        loading: How the merge loaded models.
    """
    where = str(folder)
    method = (read_recipe(folder) or {}).get("merge_method")
    if method in RANDOM_METHODS:
        report = note if extent == "shards" else warning
        yield report(
            where,
            f"{method} draws other random numbers in every run: its weights cannot be verified.",
        )
        return
    try:
        with dry_run_again(folder / RECIPE, loading) as planned:
            yield from _compare_tensors(folder, planned.tasks, extent, loading)
    # Beside a DppaError, mergekit, its methods, safetensors and torch raise many kinds where inputs
    # are damaged or have changed.
    except Exception as problem:
        yield error(where, f"its recipe cannot be merged again: {first_line(problem)}.")


def _compare_tensors(
    folder: Path, tasks: Sequence[Task[object]], extent: Extent, loading: LoadingOptions
) -> Iterator[Finding]:
    """Yield whether the folder holds what the tasks compute."""
    from mergekit.common import dtype_from_name
    from mergekit.graph import Executor
    from mergekit.io.tasks import SaveTensor
    from mergekit.tokenizer import BuildTokenizer

    where = str(folder)
    outputs = {
        task.tensor_task: (task.tensor_name, task.dtype)
        for task in tasks
        if isinstance(task, SaveTensor)
    }
    computed = list(outputs)
    facts, _ = inspect_folder(folder, where)
    chosen = computed
    if extent == "sample":
        chosen = Random(0).sample(computed, min(SAMPLE, len(computed)))
    elif extent == "shards":
        by_shard: dict[str, list[Task[object]]] = {}
        for task, (name, _) in outputs.items():
            by_shard.setdefault(facts.files.get(name, ""), []).append(task)
        by_shard.pop("", None)
        chosen = [choice(of_shard) for of_shard in by_shard.values()]
    different: list[str] = []
    compared = 0
    axes = {task: _vocabulary_axis(task) for task in chosen}
    builders = [task for task in tasks if isinstance(task, BuildTokenizer)]
    wanted = [*chosen, *(builders if any(axis is not None for axis in axes.values()) else ())]
    found = dict(Executor(wanted, math_device=torch.device("cpu")).run(quiet=True))
    rows = [
        _Rows.between(found[builder].tokenizer, folder, loading.trust_remote_code)
        for builder in builders
        if builder in found
    ]
    for task in chosen:
        (name, dtype), tensor = outputs[task], found[task]
        file = facts.files.get(name)
        if file is None or tensor is None or not file.endswith(".safetensors"):
            continue
        compared += 1
        if dtype is not None:
            tensor = tensor.to(dtype_from_name(dtype))
        with safe_open(folder / file, framework="pt") as opened:
            stored = opened.get_tensor(name)
        axis = axes[task]
        if axis is not None and stored.shape == tensor.shape:
            for of_tokens in rows:
                stored, tensor = of_tokens.align(stored, tensor, axis)
        if stored.dtype != tensor.dtype or not _is_identical(stored, tensor):
            different.append(name)
    if different:
        yield error(
            where,
            f"its recipe gives other bytes for {len(different)} of {count(compared, 'tensor')}, "
            f"such as {min(different)}: they are of another merge, or its inputs have changed.",
        )
    else:
        yield note(
            where,
            f"its recipe gives the same bytes for {compared} of {count(len(computed), 'tensor')}"
            f"{', one of each shard, drawn at random' * (extent == 'shards')}.",
        )


def _vocabulary_axis(task: Task[object]) -> int | None:
    """Return the axis of an output that is indexed by tokens; None if there is none."""
    axis: int | None = getattr(getattr(task, "output_weight", None), "vocabulary_axis", None)
    return axis


@dataclass(frozen=True)
class _Rows:
    """The ids of the same tokens in a folder and in a merge that is computed again.

    A tokenizer that mergekit makes of several numbers the tokens that the base lacks in the order
    of a set, so in another one in every process; their rows of embeddings differ in place.

    Attributes:
        stored: The ids in the folder's tokenizer.
        computed: The ids in the tokenizer that the recipe gives now, token by token.
    """

    stored: Sequence[int]
    computed: Sequence[int]

    @classmethod
    def between(cls, tokenizer: PreTrainedTokenizerBase, folder: Path, trusting: bool) -> _Rows:
        """Compare the tokenizer that a recipe gives with that of a folder, whose code may run."""
        from transformers import AutoTokenizer

        stored = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusting)
        ours, theirs = stored.get_vocab(), tokenizer.get_vocab()
        tokens = [token for token in ours if token in theirs]
        return cls([ours[token] for token in tokens], [theirs[token] for token in tokens])

    def align(
        self, stored: torch.Tensor, computed: torch.Tensor, axis: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what two tensors of one shape hold for the tokens, in the same order."""
        size = stored.shape[axis]
        pairs = [pair for pair in zip(self.stored, self.computed, strict=True) if max(pair) < size]
        rows = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
        return stored.index_select(axis, rows[:, 0]), computed.index_select(axis, rows[:, 1])


def _is_identical(stored: torch.Tensor, computed: torch.Tensor) -> bool:
    """Return whether two tensors of one dtype are the same, byte for byte."""
    return stored.shape == computed.shape and torch.equal(
        stored.contiguous().view(-1).view(torch.uint8),
        computed.contiguous().view(-1).view(torch.uint8),
    )
