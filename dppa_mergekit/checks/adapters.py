"""LoRAs of a recipe, and what mergekit's cache holds of them from earlier merges.

mergekit 0.1.5 merges an adapter into its model once, and takes the folder that it finds the next
time: without a word if it is of an older version of the adapter, and even if a killed run left it
and it cannot be loaded. See mergekit/common.py (ModelReference.merged).
"""

from __future__ import annotations

import binascii
import os
from collections.abc import Iterator
from pathlib import Path

from dppa_mergekit.checks.adapter_contents import check_contents
from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts
from dppa_mergekit.checks.checkpoint_files import inspect_folder
from dppa_mergekit.checks.findings import Finding, error, warning
from dppa_mergekit.recipes.references import Reference, named

WEIGHTS = ("*.safetensors", "*.bin")


def check_adapter(
    model: str, cache: str | None, below: CheckpointFacts | None
) -> Iterator[Finding]:
    """Yield what is wrong with the adapter of a model, if it has one.

    Args:
        model: The model as a recipe spells it: the adapter follows a +.
        cache: The folder that the merge will get as --lora-merge-cache; None if it is not known.
        below: What is known of the model below the adapter; None if nothing is.
    """
    reference = named(model)
    if reference.lora is None:
        return
    path, adapter = str(reference.model), str(reference.lora)
    adapter_folder = Path(adapter)
    if adapter.startswith(("/", ".", "~")) and not os.path.isdir(adapter_folder):
        yield error(model, f"there is no adapter {adapter}.")
        return
    if os.path.isdir(adapter_folder):
        yield from check_contents(adapter_folder, model, below)
    if cache is None:
        return
    merged = Path(cache) / merged_name(reference)
    if not os.path.exists(merged):
        return
    weights = find_weights(merged)
    if not weights:
        yield error(
            model,
            f"{merged} exists but holds no weights, as after a killed run: every merge fails until "
            f"it is removed.",
        )
        return
    _, findings = inspect_folder(merged, model)
    for finding in findings:
        if finding.severity == "error":
            yield error(
                model,
                f"{merged}: {finding.sentence} Remove the folder; the next merge makes it anew.",
            )
            return
    oldest = min(file.stat().st_mtime for file in weights)
    for folder in (adapter_folder, Path(path)):
        newer = [file for file in find_weights(folder) if file.stat().st_mtime > oldest]
        if newer:
            yield warning(
                model,
                f"{newer[0]} is newer than its merge in the cache, {merged}, which mergekit would "
                f"use all the same: remove that folder if {folder} has changed.",
            )


def merged_name(model: Reference) -> str:
    """Return the name of the folder in mergekit's cache that has a model with its LoRA."""
    return "_".join(
        f"{Path(place.path).name}_{binascii.crc32(str(place).encode())}"
        for place in (model.model, model.lora)
        if place is not None
    )


def find_weights(folder: Path) -> list[Path]:
    """Return the weight files in a folder, of either format; none if there is no such folder."""
    if not os.path.isdir(folder):
        return []
    return sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
