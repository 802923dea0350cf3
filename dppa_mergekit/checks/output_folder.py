"""The folder that a merge will write, and the memory and disk that the merge will need."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from dppa_mergekit.checkpoints.safetensors_header import FLOAT_BYTES, INDEX
from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts
from dppa_mergekit.checks.findings import Finding, error, note, warning
from dppa_mergekit.merging.input_models import DTYPES
from dppa_mergekit.recipes.references import identity
from dppa_mergekit.report.phrases import such_as

SHARD = 5e9
"""Bytes of an output shard, by default. The help of --out-shard-size says parameters, but bytes are
counted (mergekit/io/tensor_writer.py, release 0.1.5)."""

PROCESS, PER_ELEMENT = 0.4e9, 2.7
"""Bytes of the process, and bytes for each element of the largest tensor, as measured in a bf16
merge."""


def check_output(output: Path, models: Sequence[str], size: float | None) -> Iterator[Finding]:
    """Yield whether the output is an input, holds an older merge, or cannot be written.

    Args:
        output: The folder that the merge will write.
        models: The models of the recipe.
        size: The bytes of its weights; None where they are not known.
    """
    where = str(output)
    for model in models:
        if os.path.exists(model) and identity(model) == identity(output):
            yield error(
                where,
                f"it is the input {model}, which the merge would overwrite: name another folder.",
            )
            return
    if output.exists() and not output.is_dir():
        yield error(where, "it is a file, not a folder.")
        return
    if output.exists():
        yield from _check_older(output, where, size)
    existing = _find_existing(output)
    if not os.access(existing, os.W_OK):
        yield error(where, f"{existing} is not writable.")


def _check_older(output: Path, where: str, size: float | None) -> Iterator[Finding]:
    """Yield the weights of an older merge in an output folder.

    The new merge overwrites files of the same names and leaves the others. Where one file lies
    beside an index of shards, transformers loads the file and mergekit the shards.
    """
    older = sorted(path.name for path in output.glob("*.safetensors"))
    if not older:
        return
    found = such_as(older, "weight file", "weight files")
    was_sharded = (output / INDEX).exists() or len(older) > 1
    if size is not None and was_sharded != (size > SHARD):
        layouts = ["one file", "shards"]
        yield error(
            where,
            f"it already holds {found}, in {layouts[was_sharded]}, and the merge would write "
            f"{layouts[not was_sharded]} beside: remove them, or name another folder.",
        )
    else:
        yield warning(
            where,
            f"it already holds {found}; the merge leaves what it does not overwrite, so remove "
            f"them first.",
        )


def output_size(content: Mapping[str, object], base: CheckpointFacts) -> float | None:
    """Return the bytes of a merge's weights; None where the base's tensors are not known.

    Args:
        content: The content of the recipe.
        base: The base model.
    """
    if not base.tensors:
        return None
    width = DTYPES.get(str(content.get("out_dtype") or content.get("dtype")))
    return sum(
        math.prod(header.shape) * (width or FLOAT_BYTES.get(header.dtype, 8))
        for header in base.tensors.values()
    )


def estimate_needs(size: float, base: CheckpointFacts, output: Path | None) -> Iterator[Finding]:
    """Yield the disk and the memory that a merge needs, beside what is free.

    Args:
        size: The bytes of the merge's weights.
        base: The base model, whose tensors are known.
        output: The folder that the merge will write; None for any on the current disk.
    """
    largest = max(math.prod(header.shape) for header in base.tensors.values())
    memory = PROCESS + PER_ELEMENT * largest + min(size, SHARD)
    free_disk = shutil.disk_usage(_find_existing(output or Path())).free
    report = warning if output is None else error
    yield _compare("disk", size, free_disk, "free some space, or name another disk", report)
    yield _compare(
        "memory", memory, _read_available_memory(), "a smaller --out-shard-size needs less", warning
    )


def _find_existing(output: Path) -> Path:
    """Return the output, or the nearest folder above it that exists."""
    output = output.resolve()
    return next(path for path in (output, *output.parents) if path.exists())


def _compare(
    resource: str,
    needed: float,
    free: float | None,
    hint: str,
    report: Callable[[str, str], Finding],
) -> Finding:
    sentence = f"the merge needs about {needed / 1e9:.2g} GB"
    if free is None:
        return note(resource, f"{sentence}.")
    sentence = f"{sentence}; {free / 1e9:.1f} GB free"
    return (
        report(resource, f"{sentence}: {hint}.")
        if needed > free
        else note(resource, f"{sentence}.")
    )


def _read_available_memory() -> float | None:
    """Return the bytes that a process can get; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return None
