"""LoRAs of a recipe, and what mergekit's cache holds of them from an earlier run.

mergekit 0.1.5 merges an adapter into its model once and takes what it finds the next time: an
older version of the adapter in silence, and a folder that a killed run left, although it cannot be
loaded.
Read off mergekit/common.py (ModelReference.merged).
"""

from __future__ import annotations

import binascii
import os
from collections.abc import Iterator
from pathlib import Path

from dppa_mergekit.checks.checkpoint_files import of_folder
from dppa_mergekit.checks.findings import Finding, error, warning

WEIGHTS = ("*.safetensors", "*.bin")


def checked(model: str, cache: Path | None) -> Iterator[Finding]:
    """What is wrong with the adapter of a model, if it has one.

    Args:
        model: As a recipe spells it: the adapter stands after +.
        cache: What the merge will be given as --lora-merge-cache; None if it is not known.
    """
    path, _, adapter = model.partition("+")
    if not adapter:
        return
    where = Path(adapter)
    if adapter.startswith(("/", ".", "~")) and not os.path.isdir(where):
        yield error(model, f"there is no adapter {adapter}.")
        return
    if cache is None:
        return
    held = cache / f"{_unique(path)}_{_unique(adapter)}"
    if not os.path.exists(held):
        return
    weights = _weights(held)
    if not weights:
        yield error(
            model,
            f"{held} is there and holds no weights, as after a killed run: every merge will fail "
            f"until it is removed.",
        )
        return
    _, found = of_folder(held, model)
    for each in found:
        if each.severity == "error":
            yield error(model, f"{held}: {each.sentence} Remove it, and it is made anew.")
            return
    oldest = min(file.stat().st_mtime for file in weights)
    for folder in (where, Path(path)):
        newer = [each for each in _weights(folder) if each.stat().st_mtime > oldest]
        if newer:
            yield warning(
                model,
                f"{newer[0]} is newer than its merge in the cache, {held}, which would be taken "
                f"in silence: remove that, if {folder} has changed.",
            )


def _unique(path: str) -> str:
    """What mergekit's cache calls a model or an adapter."""
    name = path.split("@")[0]
    return f"{Path(name).name}_{binascii.crc32(path.encode())}"


def _weights(folder: Path) -> list[Path]:
    if not os.path.isdir(folder):
        return []
    return sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
