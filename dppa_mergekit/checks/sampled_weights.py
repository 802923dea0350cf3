"""A few weights of a model beside its base's: whether it is a fine-tune of this base at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy
from numpy.typing import NDArray

from dppa_mergekit.checkpoints.safetensors_header import FLOATING
from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts
from dppa_mergekit.checks.findings import Finding, error, note
from dppa_mergekit.checks.stored_arrays import StoredArrays
from dppa_mergekit.recipes.references import named
from dppa_mergekit.report.phrases import count
from dppa_mergekit.tensor_names import block_of

SAMPLED = 4
"""Linears of a model of which a slice is read."""

ROWS, COLUMNS = 64, 256
"""The size of a slice."""

UNRELATED = 0.7
"""From this relative distance on, two weights are unrelated. Independent weights of the same
deviation have 1.4."""

Floats: TypeAlias = NDArray[numpy.float64]


def check_samples(fine_tuned: CheckpointFacts, base: CheckpointFacts) -> Iterator[Finding]:
    """Yield whether a model is a fine-tune of the base, by slices of a few linears."""
    models = (fine_tuned, base)
    # The facts of a model with a LoRA are those of the model below it.
    is_readable = all(
        facts.folder is not None and named(facts.model).lora is None for facts in models
    )
    linears = _find_comparable(fine_tuned, base) if is_readable else []
    if not linears:
        yield note(fine_tuned.model, "no slice of it can be read here.")
        return
    ours, theirs = StoredArrays(fine_tuned), StoredArrays(base)
    distances = {
        name: _distance(_read_slice(ours, name), _read_slice(theirs, name))
        for name in _choose(linears)
    }
    broken = [name for name, distance in distances.items() if not math.isfinite(distance)]
    square = [name for name in linears if len(set(base.tensors[name].shape)) == 1]
    transposed = [name for name in _choose(square) if _is_transposed(ours, theirs, name)]
    median = float(numpy.median(list(distances.values())))
    if broken:
        yield error(
            fine_tuned.model,
            f"it or the base model holds NaN or infinity in {len(broken)} of "
            f"{count(len(distances), 'slice')}, such as {broken[0]}.",
        )
    elif transposed:
        yield error(fine_tuned.model, f"{transposed[0]} is the base model's, transposed.")
    elif median >= UNRELATED:
        yield error(
            fine_tuned.model,
            f"its weights differ from the base model's by {median:.2f} of their norm (median of "
            f"{count(len(distances), 'slice')}; unrelated weights give 1.4): it is not a fine-tune "
            f"of this base.",
        )
    else:
        yield note(
            fine_tuned.model, f"its weights differ by {median:.3f} of the base model's norm."
        )


def _find_comparable(fine_tuned: CheckpointFacts, base: CheckpointFacts) -> list[str]:
    """Return the matrices in blocks that both models store in the same shape, as floats."""
    return [
        name
        for name, stored in base.tensors.items()
        if block_of(name) is not None
        and len(stored.shape) == 2
        and 0 not in stored.shape
        and (own := fine_tuned.tensors.get(name)) is not None
        and own.shape == stored.shape
        and {own.dtype, stored.dtype} <= FLOATING
    ]


def _choose(linears: Sequence[str]) -> list[str]:
    """Return a few of many linears, at equal distances from the first on."""
    number = min(SAMPLED, len(linears))
    return [linears[place * len(linears) // number] for place in range(number)]


def _is_transposed(ours: StoredArrays, theirs: StoredArrays, name: str) -> bool:
    """Return whether a square matrix is like the base's only after transposition."""
    as_stored = _distance(_read_slice(ours, name), _read_slice(theirs, name))
    transposed = _distance(
        _read_slice(ours, name, square=True).T, _read_slice(theirs, name, square=True)
    )
    return as_stored >= UNRELATED > transposed


def _distance(ours: Floats, theirs: Floats) -> float:
    """Return the norm of the difference relative to `theirs`; not finite where an input is not."""
    with numpy.errstate(over="ignore", invalid="ignore"):
        return float(numpy.linalg.norm(ours - theirs) / (numpy.linalg.norm(theirs) or 1.0))


def _read_slice(stored: StoredArrays, name: str, square: bool = False) -> Floats:
    """Return the first rows and columns of a stored matrix.

    Args:
        stored: The tensors of a model.
        name: A matrix of it.
        square: Whether as many columns as rows are read.
    """
    part = numpy.array(stored.map(name)[:ROWS, : ROWS if square else COLUMNS])
    if stored.facts.tensors[name].dtype == "BF16":
        part = (part.astype(numpy.uint32) << 16).view(numpy.float32)
    return part.astype(numpy.float64)
