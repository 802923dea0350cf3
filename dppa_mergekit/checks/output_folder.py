"""The folder that a merge will write, and the memory and disk that the merge will need."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dppa_mergekit.checkpoints.safetensors_header import FLOAT_BYTES
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


def check_output(output: Path, models: Sequence[str]) -> Iterator[Finding]:
    """Yield whether the output is an input, holds an older merge, or cannot be written."""
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
    older = sorted(path.name for path in output.glob("*.safetensors")) if output.exists() else []
    if older:
        found = such_as(older, "weight file", "weight files")
        yield warning(
            where,
            f"it already holds {found}; the merge leaves what it does not overwrite, so remove "
            f"them first.",
        )
    existing = _find_existing(output)
    if not os.access(existing, os.W_OK):
        yield error(where, f"{existing} is not writable.")


def estimate_needs(
    content: Mapping[str, object], base: CheckpointFacts, output: Path
) -> Iterator[Finding]:
    """Yield the disk and the memory that a merge needs, beside what is free.

    Args:
        content: The content of the recipe.
        base: The base model.
        output: The folder that the merge will write.
    """
    if not base.tensors:
        return
    dtype = content.get("out_dtype") or content.get("dtype")
    width = DTYPES.get(str(dtype).removeprefix("torch."))
    numbers = {name: math.prod(header.shape) for name, header in base.tensors.items()}
    disk = sum(
        numbers[name] * (width or FLOAT_BYTES.get(header.dtype, 8))
        for name, header in base.tensors.items()
    )
    memory = PROCESS + PER_ELEMENT * max(numbers.values()) + min(disk, SHARD)
    free_disk = shutil.disk_usage(_find_existing(output)).free
    yield _compare("disk", disk, free_disk, "free some space, or name another disk")
    yield _compare(
        "memory", memory, _read_available_memory(), "a smaller --out-shard-size needs less"
    )


def _find_existing(output: Path) -> Path:
    """Return the output, or the nearest folder above it that exists."""
    output = output.resolve()
    return next(path for path in (output, *output.parents) if path.exists())


def _compare(resource: str, needed: float, free: float | None, hint: str) -> Finding:
    sentence = f"the merge needs about {needed / 1e9:.2g} GB"
    if free is None:
        return note(resource, f"{sentence}.")
    sentence = f"{sentence}; {free / 1e9:.1f} GB free"
    return (
        warning(resource, f"{sentence}: {hint}.")
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
