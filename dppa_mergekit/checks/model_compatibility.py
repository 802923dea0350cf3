"""The models of a recipe beside their base, by what both have: what does not fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy
from numpy.typing import NDArray

from dppa_mergekit.checks.checkpoint_files import WIDTHS, Checkpoint, Stored
from dppa_mergekit.checks.findings import Finding, error, note, warning
from dppa_mergekit.checks.recipe_text import layer_range
from dppa_mergekit.recipes import identity
from dppa_mergekit.tensor_names import block_of, natural_order

MUST_AGREE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts_per_tok",
)
"""What of a configuration two models of one base have in common."""

SHOULD_AGREE = ("rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "hidden_act")

VOCABULARY = ("embed_tokens", "lm_head", "wte", "shared", "word_embeddings", "embed_out")
"""Parts of the names of tensors with an axis of tokens."""

SAMPLED = 4
"""Linears of a model of which a slice is read."""

ROWS, COLUMNS = 64, 256
"""Of the slice."""

UNRELATED = 0.7
"""A delta of this norm, relative to the base: unrelated weights of one deviation give 1.4."""

Floats = NDArray[numpy.float64]

_KINDS: Mapping[str, type[numpy.generic]] = {
    "F64": numpy.float64,
    "F32": numpy.float32,
    "F16": numpy.float16,
    "BF16": numpy.uint16,
}
"""What a file is read as; numpy knows no BF16."""


def names(models: Sequence[str], base: str | None) -> Iterator[Finding]:
    """Models given twice, under any spelling, and a base that is a fine-tuned model, too."""
    seen: dict[object, str] = {}
    for model in models:
        key = identity(model)
        if key in seen:
            yield error(model, f"it is given twice, also as {seen[key]}: sum the weights.")
        seen.setdefault(key, model)
    if base is not None:
        same = seen.get(identity(base))
        if same is not None and same != base:
            yield error(same, f"it is the base model, spelt as {base}: its delta is zero.")


def beside_base(fine_tuned: Checkpoint, base: Checkpoint, has_tokenizer: bool) -> Iterator[Finding]:
    """What does not fit between a fine-tuned model and its base.

    Args:
        fine_tuned: The fine-tuned model.
        base: The base.
        has_tokenizer: Whether the recipe says which tokenizer the merge gets.
    """
    yield from _configurations(fine_tuned, base)
    yield from _tokenizers(fine_tuned, base, has_tokenizer)
    if fine_tuned.tensors and base.tensors:
        yield from _shapes(fine_tuned, base, has_tokenizer)


def _configurations(fine_tuned: Checkpoint, base: Checkpoint) -> Iterator[Finding]:
    if not fine_tuned.config or not base.config:
        return
    for keys, severity in ((MUST_AGREE, error), (SHOULD_AGREE, warning)):
        for key in keys:
            here, there = fine_tuned.config.get(key), base.config.get(key)
            if here != there and (key in fine_tuned.config) == (key in base.config):
                yield severity(
                    fine_tuned.model,
                    f"config.json has {key} {here}, and {there} in the base model.",
                )


def _tokenizers(fine_tuned: Checkpoint, base: Checkpoint, has_tokenizer: bool) -> Iterator[Finding]:
    here, there = fine_tuned.vocabulary, base.vocabulary
    if here and there:
        moved = [token for token in here.keys() & there.keys() if here[token] != there[token]]
        if moved and not has_tokenizer:
            token = min(moved, key=lambda each: there[each])
            yield error(
                fine_tuned.model,
                f"{len(moved)} tokens have other numbers than in the base model ({token!r} is "
                f"{here[token]}, not {there[token]}): set tokenizer: {{source: union}}, which "
                f"moves their embeddings.",
            )
        more = here.keys() - there.keys()
        if more and not has_tokenizer:
            yield warning(
                fine_tuned.model,
                f"it has {len(more)} tokens that the base model has not, such as {min(more)!r}: "
                f"set tokenizer: {{source: union}} to keep them.",
            )
    if fine_tuned.template is not None and fine_tuned.template != base.template:
        other = "another than the base model" if base.template else "one, and the base model none"
        yield warning(
            fine_tuned.model,
            f"its chat template is {other}: the merge gets the base model's, unless "
            f"chat_template or tokenizer says otherwise."
            if base.template
            else f"it has a chat template, {other[5:]}: set chat_template to keep it.",
        )
    if fine_tuned.ends and base.ends and fine_tuned.ends != base.ends:
        yield warning(
            fine_tuned.model,
            f"answers end with token {_numbers(fine_tuned.ends)}, those of the base model with "
            f"{_numbers(base.ends)}: the merge stops where the base model does.",
        )


def _shapes(fine_tuned: Checkpoint, base: Checkpoint, has_tokenizer: bool) -> Iterator[Finding]:
    shapes = [
        name
        for name, each in fine_tuned.tensors.items()
        if name in base.tensors and each.shape != base.tensors[name].shape
    ]
    of_tokens = [name for name in shapes if any(part in name for part in VOCABULARY)]
    for name in of_tokens:
        if not has_tokenizer:
            yield error(
                fine_tuned.model,
                f"{name} has shape {_shape(fine_tuned.tensors[name])}, and "
                f"{_shape(base.tensors[name])} in the base model: the vocabularies differ; set "
                f"tokenizer: {{source: base}} or {{source: union}}.",
            )
    others = [name for name in shapes if name not in of_tokens]
    if others:
        name = min(others, key=natural_order)
        yield error(
            fine_tuned.model,
            f"{len(others)} tensors have another shape than in the base model, such as {name}: "
            f"{_shape(fine_tuned.tensors[name])} and {_shape(base.tensors[name])}.",
        )
    here, there = (_dtype(each) for each in (fine_tuned, base))
    if here != there:
        yield note(fine_tuned.model, f"its weights are {here}, those of the base model {there}.")


def sampled(fine_tuned: Checkpoint, base: Checkpoint) -> Iterator[Finding]:
    """Whether a model is a fine-tune of the base at all, by slices of a few linears."""
    linears = [
        name
        for name, there in base.tensors.items()
        if block_of(name) is not None
        and len(there.shape) == 2
        and 0 not in there.shape
        and (here := fine_tuned.tensors.get(name)) is not None
        and here.shape == there.shape
        and {here.dtype, there.dtype} <= WIDTHS.keys()
    ]
    if fine_tuned.folder is None or base.folder is None or not linears:
        yield note(fine_tuned.model, "no slice of it can be read here.")
        return
    square = [name for name in linears if len(set(base.tensors[name].shape)) == 1]
    relative = {
        name: _distance(_slice(fine_tuned, name), _slice(base, name)) for name in _some(linears)
    }
    broken = [name for name, each in relative.items() if not math.isfinite(each)]
    turned = [
        name
        for name in _some(square)
        if _distance(_slice(fine_tuned, name), _slice(base, name)) >= UNRELATED
        and _distance(_slice(fine_tuned, name, square=True).T, _slice(base, name, square=True))
        < UNRELATED
    ]
    middle = float(numpy.median(list(relative.values())))
    if broken:
        yield error(
            fine_tuned.model,
            f"{len(broken)} of {len(relative)} slices hold NaN or infinity, here or in the base "
            f"model, such as {broken[0]}.",
        )
    elif turned:
        yield error(fine_tuned.model, f"{turned[0]} is the base model's, transposed.")
    elif middle >= UNRELATED:
        yield error(
            fine_tuned.model,
            f"its weights differ from the base model's by {middle:.2f} of their norm (median of "
            f"{len(relative)} slices; unrelated ones give 1.4): it is no fine-tune of this base.",
        )
    else:
        yield note(
            fine_tuned.model, f"its weights differ by {middle:.3f} of the base model's norm."
        )


def _some(linears: Sequence[str]) -> list[str]:
    """A few of many, from the first on."""
    number = min(SAMPLED, len(linears))
    return [linears[place * len(linears) // number] for place in range(number)]


def _distance(here: Floats, there: Floats) -> float:
    """Of the norm of what is there; not finite where one of them is not."""
    with numpy.errstate(over="ignore", invalid="ignore"):
        return float(numpy.linalg.norm(here - there) / (numpy.linalg.norm(there) or 1.0))


def _slice(checkpoint: Checkpoint, name: str, square: bool = False) -> Floats:
    """The first rows and columns of a stored matrix."""
    stored = checkpoint.tensors[name]
    assert checkpoint.folder is not None
    rows, columns = stored.shape
    held = numpy.memmap(
        checkpoint.folder / stored.file,
        _KINDS[stored.dtype],
        "r",
        offset=stored.start,
        shape=(rows, columns),
    )
    part = numpy.array(held[:ROWS, : ROWS if square else COLUMNS])
    if stored.dtype == "BF16":
        part = (part.astype(numpy.uint32) << 16).view(numpy.float32)
    return part.astype(numpy.float64)


def moved_layers(content: Mapping[str, object], method: str) -> Iterator[Finding]:
    """Slices that put a layer at another place than it has in its model."""
    for where, slices in _stacks(content):
        place = 0
        for number, each in enumerate(slices, start=1):
            ranges = list(_ranges(each))
            if not ranges:
                break
            moved = next((first for first, _ in ranges if first != place), None)
            if moved is not None:
                yield error(
                    f"{where}slice {number}",
                    f"layer {moved} would become layer {place}, and {method} needs every layer at "
                    f"its own place.",
                )
            first, after = ranges[0]
            place += after - first


def _stacks(content: Mapping[str, object]) -> Iterator[tuple[str, Sequence[object]]]:
    """The lists of slices of a recipe and of its modules, and where they stand."""
    slices, modules = content.get("slices"), content.get("modules")
    if isinstance(slices, list):
        yield "", slices
    for name, module in modules.items() if isinstance(modules, dict) else ():
        if isinstance(module, dict) and isinstance(module.get("slices"), list):
            yield f"modules, {name}, ", module["slices"]


def _ranges(one: object) -> Iterator[tuple[int, int]]:
    """Of the sources of a slice, but for those that mergekit refuses."""
    sources = one.get("sources") if isinstance(one, dict) else None
    for each in sources if isinstance(sources, list) else ():
        found = layer_range(each.get("layer_range")) if isinstance(each, dict) else None
        if found is not None:
            yield found


def _dtype(checkpoint: Checkpoint) -> str:
    """The commonest dtype of its weights."""
    counted = Counter(each.dtype for each in checkpoint.tensors.values() if each.dtype in WIDTHS)
    return counted.most_common(1)[0][0] if counted else "none"


def _shape(stored: Stored) -> str:
    return " x ".join(map(str, stored.shape)) or "none"


def _numbers(ends: frozenset[int]) -> str:
    return " and ".join(map(str, sorted(ends)))
