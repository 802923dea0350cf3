"""Tensors of a merged folder, computed again from its recipe and compared byte for byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random, choice
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import safe_open

import dppa_mergekit.methods  # noqa: F401  # registers them where autoload is switched off
from dppa_mergekit.checkpoints.loading_options import LoadingOptions
from dppa_mergekit.checkpoints.pickled_header import map_pickled_tensors
from dppa_mergekit.checks.checkpoint_files import inspect_folder
from dppa_mergekit.checks.findings import Finding, error, note, warning
from dppa_mergekit.checks.merged_folder import RECIPE, read_recipe
from dppa_mergekit.checks.mergekit_reads import plan_merge_again
from dppa_mergekit.checks.mergekit_schema import RANDOM_METHODS
from dppa_mergekit.errors import DppaError, first_line
from dppa_mergekit.merging.dry_run import dry_run_again
from dppa_mergekit.merging.misfits import MisfitError
from dppa_mergekit.report.phrases import count

if TYPE_CHECKING:
    from mergekit.graph import Task
    from mergekit.io.tasks import SaveTensor
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


def check_again(folder: Path, loading: LoadingOptions) -> Iterator[Finding]:
    """Yield the tensors that an earlier merge has lost, or why its recipe has no plan now."""
    try:
        losses = plan_merge_again(folder / RECIPE, loading).losses
    except MisfitError as problem:
        for misfit in problem.misfits:
            yield error(misfit.subject, misfit.sentence)
    except DppaError as problem:
        yield note(str(folder), f"its recipe cannot be planned again: {problem.message}")
    else:
        for misfit in losses:
            yield warning(misfit.subject, misfit.sentence)


def _compare_tensors(
    folder: Path, tasks: Sequence[Task[object]], extent: Extent, loading: LoadingOptions
) -> Iterator[Finding]:
    """Yield whether the folder holds what the tasks compute."""
    from mergekit.io.tasks import SaveTensor

    where = str(folder)
    facts, _ = inspect_folder(folder, where)
    saves = [task for task in tasks if isinstance(task, SaveTensor)]
    chosen = _choose(saves, facts.files, extent)
    computed, rows = _compute(chosen, tasks, folder, loading)
    different: list[str] = []
    compared = 0
    for save in chosen:
        file, tensor = facts.files.get(save.tensor_name), computed[save.tensor_name]
        if file is None or tensor is None:
            continue
        compared += 1
        stored = _read_stored(folder / file, save.tensor_name)
        axis = _vocabulary_axis(save.tensor_task)
        if rows is not None and axis is not None and stored.shape == tensor.shape:
            stored, tensor = rows.align(stored, tensor, axis)
        if stored.dtype != tensor.dtype or not _is_identical(stored, tensor):
            different.append(save.tensor_name)
    if not compared:
        yield warning(
            where, "no tensor was compared: it holds none of those that its recipe gives."
        )
    elif different:
        yield error(
            where,
            f"its recipe gives other bytes for {len(different)} of {count(compared, 'tensor')}, "
            f"such as {min(different)}: they are of another merge, or its inputs have changed.",
        )
    else:
        yield note(
            where,
            f"its recipe gives the same bytes for {compared} of {count(len(saves), 'tensor')}"
            f"{', one of each shard, drawn at random' * (extent == 'shards')}.",
        )


def _read_stored(path: Path, name: str) -> torch.Tensor:
    """Return a tensor of a file of either format. Raises CheckpointError if it is damaged."""
    if path.suffix.lower() != ".safetensors":
        return map_pickled_tensors(path)[name]
    with safe_open(path, framework="pt") as opened:
        stored: torch.Tensor = opened.get_tensor(name)
    return stored


def _choose(
    saves: Sequence[SaveTensor], files: Mapping[str, str], extent: Extent
) -> Sequence[SaveTensor]:
    """Return the tasks of the tensors to compute again.

    Args:
        saves: The tasks that write all tensors.
        files: Name of a tensor -> the file in the folder that holds it.
        extent: Which tensors are computed.
    """
    if extent == "all":
        return saves
    if extent == "sample":
        return Random(0).sample(saves, min(SAMPLE, len(saves)))
    by_shard: dict[str, list[SaveTensor]] = {}
    for save in saves:
        if save.tensor_name in files:
            by_shard.setdefault(files[save.tensor_name], []).append(save)
    return [choice(of_shard) for of_shard in by_shard.values()]


def _compute(
    chosen: Sequence[SaveTensor],
    tasks: Sequence[Task[object]],
    folder: Path,
    loading: LoadingOptions,
) -> tuple[dict[str, torch.Tensor | None], _Rows | None]:
    """Return name -> tensor in the dtype of the output, and how tokens of the folder correspond.

    Args:
        chosen: The tasks that write the tensors.
        tasks: All tasks of the merge.
        folder: The merged folder.
        loading: How the merge loaded models.
    """
    from mergekit.common import dtype_from_name
    from mergekit.graph import Executor
    from mergekit.tokenizer import BuildTokenizer

    has_tokens = any(_vocabulary_axis(save.tensor_task) is not None for save in chosen)
    builder = next((task for task in tasks if isinstance(task, BuildTokenizer)), None)
    wanted = [save.tensor_task for save in chosen]
    if has_tokens and builder is not None:
        wanted.append(builder)
    found = dict(Executor(wanted, math_device=torch.device("cpu")).run(quiet=True))
    computed: dict[str, torch.Tensor | None] = {}
    for save in chosen:
        tensor = found[save.tensor_task]
        is_cast = tensor is not None and save.dtype is not None
        computed[save.tensor_name] = tensor.to(dtype_from_name(save.dtype)) if is_cast else tensor
    if builder not in found:
        return computed, None
    tokenizer = found[builder].tokenizer
    return computed, _Rows.between(tokenizer, folder, loading.trust_remote_code)


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
