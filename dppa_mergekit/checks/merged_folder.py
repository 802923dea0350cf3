"""A folder that a merge wrote: whether all of it is there, whole, and of one merge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy
import yaml
from numpy.typing import NDArray
from tqdm import tqdm

from dppa_mergekit.checks.checkpoint_files import Checkpoint, of_folder, read, stale
from dppa_mergekit.checks.findings import Finding, error, note, warning
from dppa_mergekit.checks.tensors import MISSING, is_at_hand, such_as, without
from dppa_mergekit.errors import DppaError
from dppa_mergekit.tensor_names import natural_order

RECIPE = "mergekit_config.yml"
"""The recipe that mergekit leaves in the folder."""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")

CHUNK = 1 << 22
"""Elements that are looked at together."""


def recipe_of(folder: Path) -> Mapping[str, object] | None:
    """The recipe in a merged folder, if it can be read."""
    try:
        content = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def checked(folder: Path) -> Iterator[Finding]:
    """What is wrong with a merged folder; every weight is read once."""
    checkpoint, found = of_folder(folder, str(folder))
    yield from found
    yield from stale(folder)
    if not any((folder / name).exists() for name in TOKENIZERS):
        yield error(str(folder), "there is no tokenizer: the merge did not end, or lost it.")
    yield from _not_finite(checkpoint)
    recipe = recipe_of(folder)
    if recipe is None:
        yield note(str(folder), f"it has no {RECIPE}: it cannot be compared with its base model.")
        return
    yield from _missing(checkpoint, recipe)


def _missing(checkpoint: Checkpoint, recipe: Mapping[str, object]) -> Iterator[Finding]:
    where, name = checkpoint.model, recipe.get("base_model")
    if not isinstance(name, str):
        yield note(where, "its recipe names no base model to compare it with.")
        return
    base, _ = read(name)
    if base is None or not base.tensors:
        yield note(where, f"the base model {name} is not here to compare with.")
        return
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    missing = without(base.tensors, checkpoint.tensors, tied)
    if missing:
        yield from _lost(checkpoint, recipe, missing)
    for key in ("num_hidden_layers", "hidden_size", "model_type"):
        here, there = checkpoint.config.get(key), base.config.get(key)
        if here != there and not recipe.get("slices"):
            yield warning(where, f"config.json has {key} {here}, the base model {there}.")


def _lost(
    checkpoint: Checkpoint, recipe: Mapping[str, object], missing: list[str]
) -> Iterator[Finding]:
    """Tensors that the recipe gives and that are not there, where base and merge differ in names.

    Args:
        checkpoint: Of the merged folder.
        recipe: In it.
        missing: Tensors of the base that are not there under their names.
    """
    folder = checkpoint.folder
    assert folder is not None
    reason = "a model of its recipe is in no folder here."
    if is_at_hand(recipe):
        from dppa_mergekit.checks.mergekit_reads import planned_again

        try:
            outputs = planned_again(folder / RECIPE).outputs
        except DppaError as problem:
            reason = problem.message
        else:
            lost = [
                name
                for name, optional in outputs.items()
                if name not in checkpoint.tensors and (not optional or name in missing)
            ]
            if lost:
                yield error(
                    checkpoint.model, f"{such_as(lost, 'that its recipe gives are missing')}."
                )
            return
    yield warning(
        checkpoint.model,
        f"{such_as(missing, MISSING)}, or go by other names, which cannot be told here: {reason}",
    )


def _not_finite(checkpoint: Checkpoint) -> Iterator[Finding]:
    """NaN and infinity in the weights."""
    folder = checkpoint.folder
    assert folder is not None
    bad: list[str] = []
    total = sum(each.size for each in checkpoint.tensors.values())
    with tqdm(total=total, desc="reading", unit="B", unit_scale=True, delay=2) as bar:
        for name, stored in checkpoint.tensors.items():
            kind = {"BF16": numpy.uint16, "F16": numpy.uint16, "F32": numpy.uint32}.get(
                stored.dtype, numpy.uint64 if stored.dtype == "F64" else None
            )
            if kind is not None and stored.size:
                values = numpy.memmap(
                    folder / stored.file,
                    kind,
                    "r",
                    offset=stored.start,
                    shape=(stored.size // numpy.dtype(kind).itemsize,),
                )
                if any(
                    _has_not_finite(values[at : at + CHUNK], stored.dtype)
                    for at in range(0, len(values), CHUNK)
                ):
                    bad.append(name)
            bar.update(stored.size)
    if bad:
        yield error(
            checkpoint.model,
            f"{len(bad)} tensors hold NaN or infinity, such as {min(bad, key=natural_order)}.",
        )


def _has_not_finite(bits: NDArray[numpy.unsignedinteger], dtype: str) -> bool:
    """Whether a value has all bits of its exponent set."""
    exponent = {
        "BF16": 0x7F80,
        "F16": 0x7C00,
        "F32": 0x7F800000,
        "F64": 0x7FF0000000000000,
    }[dtype]
    mask = bits.dtype.type(exponent)
    return bool(((bits & mask) == mask).any())
