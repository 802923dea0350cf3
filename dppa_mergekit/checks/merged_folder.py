"""A folder that a merge wrote: whether it is complete, undamaged, and of one merge."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy
import yaml
from numpy.typing import NDArray
from tqdm import tqdm

from dppa_mergekit.checkpoints.loading_options import LoadingOptions
from dppa_mergekit.checkpoints.safetensors_header import FLOAT_BYTES, FLOATING
from dppa_mergekit.checks import mergekit_schema
from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts
from dppa_mergekit.checks.checkpoint_files import check_strays, inspect_folder, inspect_model
from dppa_mergekit.checks.findings import Finding, error, note, warning
from dppa_mergekit.checks.missing_tensors import can_plan, find_missing, report_missing
from dppa_mergekit.checks.recipe_text import find_ignored
from dppa_mergekit.checks.stored_arrays import StoredArrays
from dppa_mergekit.errors import DppaError
from dppa_mergekit.recipes.references import spell
from dppa_mergekit.recipes.yaml_text import YAML_ERRORS
from dppa_mergekit.report.phrases import such_as

RECIPE = "mergekit_config.yml"
"""The recipe that mergekit leaves in the folder."""

EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|shared)\.weight$")
"""Matches the embeddings of tokens."""

CHUNK = 1 << 22
"""Elements that are looked at together."""

_EXPONENTS: Mapping[str, tuple[type[numpy.unsignedinteger], int]] = {
    "BF16": (numpy.uint16, 0x7F80),
    "F16": (numpy.uint16, 0x7C00),
    "F32": (numpy.uint32, 0x7F800000),
    "F64": (numpy.uint64, 0x7FF0000000000000),
}
"""Dtype -> the integers that its bits are read as, and the bits of the exponent."""


def read_recipe(folder: Path) -> Mapping[str, object] | None:
    """Return the content of the recipe in a merged folder; None if it cannot be read."""
    try:
        content = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, *YAML_ERRORS):
        return None
    return content if isinstance(content, dict) else None


def check_merged_folder(folder: Path, loading: LoadingOptions) -> Iterator[Finding]:
    """Yield what is wrong with a merged folder; every weight is read once.

    Args:
        folder: The folder.
        loading: How the merge loaded models.
    """
    facts, findings = inspect_folder(folder, str(folder))
    yield from findings
    yield from check_strays(facts)
    if not facts.has_tokenizer:
        yield error(str(folder), "there is no tokenizer: the merge did not finish, or lost it.")
    yield from _check_vocabulary_size(facts)
    yield from _check_finite(facts)
    recipe = read_recipe(folder)
    if recipe is None:
        yield note(
            str(folder), f"without a readable {RECIPE}, it cannot be compared with its base model."
        )
        return
    yield from _find_ignored(facts, recipe)
    yield from _compare_with_base(facts, recipe, loading)


def _find_ignored(facts: CheckpointFacts, recipe: Mapping[str, object]) -> Iterator[Finding]:
    """Yield the keys and parameters of the recipe that mergekit ignored, each once."""
    if str(recipe.get("merge_method")) not in mergekit_schema.METHODS:
        return
    for sentence in dict.fromkeys(finding.sentence for finding in find_ignored(recipe)):
        yield warning(facts.model, f"its recipe: {sentence}")


def _check_vocabulary_size(facts: CheckpointFacts) -> Iterator[Finding]:
    """Yield embeddings of fewer rows than config.json has tokens, which cannot be loaded."""
    size = facts.config.get("vocab_size")
    for name, header in facts.tensors.items():
        if EMBEDDINGS.search(name) and isinstance(size, int) and header.shape[0] < size:
            yield error(
                facts.model,
                f"{name} has {header.shape[0]} rows, and config.json has vocab_size {size}.",
            )


def _compare_with_base(
    facts: CheckpointFacts, recipe: Mapping[str, object], loading: LoadingOptions
) -> Iterator[Finding]:
    if recipe.get("base_model") is None:
        yield note(facts.model, "its recipe names no base model to compare it with.")
        return
    name = spell(recipe["base_model"])
    base, _ = inspect_model(name)
    if base is None or not base.tensors:
        yield note(facts.model, f"the base model {name} cannot be read here to compare it with.")
        return
    tied = bool(facts.config.get("tie_word_embeddings"))
    missing = find_missing(base.tensors, facts.tensors, tied)
    if missing:
        yield from _check_missing(facts, recipe, missing, loading)
    for key in ("num_hidden_layers", "hidden_size", "model_type"):
        ours, theirs = facts.config.get(key), base.config.get(key)
        if ours != theirs and not recipe.get("slices"):
            yield warning(
                facts.model, f"config.json has {key} {ours}, and {theirs} in the base model."
            )


def _check_missing(
    facts: CheckpointFacts,
    recipe: Mapping[str, object],
    missing: list[str],
    loading: LoadingOptions,
) -> Iterator[Finding]:
    """Yield tensors that the recipe gives but the folder lacks.

    Args:
        facts: What is known of the merged folder.
        recipe: The content of the recipe in it.
        missing: Tensors of the base that are not in the folder under their names.
        loading: How the merge loaded models.
    """
    folder = facts.folder
    assert folder is not None
    reason = "a model of its recipe is in no folder here."
    if can_plan(recipe, loading):
        from dppa_mergekit.checks.mergekit_reads import plan_merge_again

        try:
            outputs = plan_merge_again(folder / RECIPE, loading).outputs
        except DppaError as problem:
            reason = problem.message
        else:
            lost = [
                name
                for name, optional in outputs.items()
                if name not in facts.tensors and (not optional or name in missing)
            ]
            if lost:
                found = such_as(
                    lost,
                    "tensor that its recipe gives is missing",
                    "tensors that its recipe gives are missing",
                )
                yield error(facts.model, f"{found}.")
            return
    yield warning(
        facts.model,
        f"{report_missing(missing)}; other names, which cannot be looked up here, may explain it: "
        f"{reason}",
    )


def _check_finite(facts: CheckpointFacts) -> Iterator[Finding]:
    """Yield an error if weights hold NaN or infinity; integers never do."""
    sizes = {
        name: math.prod(header.shape) * FLOAT_BYTES[header.dtype]
        for name, header in facts.tensors.items()
        if header.dtype in FLOATING
    }
    stored = StoredArrays(facts)
    broken: list[str] = []
    total = sum(sizes.values())
    with tqdm(total=total, desc="reading", unit="B", unit_scale=True, delay=2) as bar:
        for name, size in sizes.items():
            if size and not _is_finite(stored.map(name), facts.tensors[name].dtype):
                broken.append(name)
            bar.update(size)
    if broken:
        found = such_as(broken, "tensor holds NaN or infinity", "tensors hold NaN or infinity")
        yield error(facts.model, f"{found}.")


def _is_finite(array: NDArray[numpy.generic], dtype: str) -> bool:
    """Return whether a stored tensor holds neither NaN nor infinity.

    Args:
        array: The tensor; not empty.
        dtype: The name of its dtype in safetensors headers.
    """
    integers, exponent = _EXPONENTS[dtype]
    bits = array.reshape(-1).view(integers)
    mask = integers(exponent)
    # NaN and infinity have all bits of the exponent set.
    return not any(
        bool(((bits[at : at + CHUNK] & mask) == mask).any()) for at in range(0, len(bits), CHUNK)
    )
