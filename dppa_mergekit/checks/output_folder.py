"""The folder that a merge will write, and the memory and disk that it will need."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dppa_mergekit.checks.checkpoint_files import WIDTHS, Checkpoint
from dppa_mergekit.checks.findings import Finding, error, note, warning

SHARD = 5e9
"""Bytes of an output shard, by default. The help of --out-shard-size says parameters, but bytes are
counted (mergekit/io/tensor_writer.py, release 0.1.5)."""

PROCESS, PER_ELEMENT = 0.4e9, 2.7
"""Bytes of a process, and of each element of the largest tensor, in a bf16 merge: as measured."""

DTYPES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def folder(output: Path, models: Sequence[str]) -> Iterator[Finding]:
    """An output that is an input, holds an older merge, or cannot be written."""
    where = str(output)
    real = os.path.realpath(output)
    for model in models:
        if os.path.exists(model) and os.path.realpath(model) == real:
            yield error(
                where, f"it is the input {model}, which the merge would overwrite: name another."
            )
            return
    if output.exists() and not output.is_dir():
        yield error(where, "it is a file.")
        return
    held = sorted(path.name for path in output.glob("*.safetensors")) if output.exists() else []
    if held:
        yield warning(
            where,
            f"it holds {len(held)} weight files already, such as {held[0]}: what the merge does "
            f"not overwrite is left beside it; remove them first.",
        )
    existing = next(path for path in (output.resolve(), *output.resolve().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        yield error(where, f"{existing} cannot be written.")


def needs(content: Mapping[str, object], base: Checkpoint, output: Path) -> Iterator[Finding]:
    """Memory and disk that the merge needs, beside what is there."""
    if not base.tensors:
        return
    dtype = content.get("out_dtype") or content.get("dtype")
    width = DTYPES.get(str(dtype).removeprefix("torch."))
    sizes = {
        name: math.prod(each.shape) * (width or WIDTHS.get(each.dtype, 8))
        for name, each in base.tensors.items()
    }
    disk = sum(sizes.values())
    largest = max(math.prod(each.shape) for each in base.tensors.values())
    memory = PROCESS + PER_ELEMENT * largest + min(disk, SHARD)
    existing = next(path for path in (output.resolve(), *output.resolve().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    there = available_memory()
    yield _beside("disk", disk, free, "free a folder's worth, or name another disk")
    yield _beside("memory", memory, there, "a smaller --out-shard-size needs less")


def _beside(what: str, needed: float, there: float | None, hint: str) -> Finding:
    if there is None:
        return note(what, f"about {needed / 1e9:.2g} GB are needed.")
    sentence = f"about {needed / 1e9:.2g} GB are needed, and {there / 1e9:.1f} GB are free"
    return warning(what, f"{sentence}: {hint}.") if needed > there else note(what, f"{sentence}.")


def available_memory() -> float | None:
    """Bytes that processes can have; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return None
