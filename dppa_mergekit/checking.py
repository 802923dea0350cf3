"""What `mergekit-dppa check` does: all checks of a recipe, or of a merged folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dppa_mergekit import variants
from dppa_mergekit.checks import adapters, checkpoints, inputs, merged, output, recipe
from dppa_mergekit.checks.checkpoints import Checkpoint
from dppa_mergekit.checks.findings import Finding, error


def check_recipe(
    path: Path,
    out: Path | None,
    sample: bool,
    lora_cache: Path | None = None,
    weighted: bool = True,
) -> Iterator[Finding]:
    """What is wrong with a recipe, its models, and the folder that it is to write.

    Args:
        path: Of the recipe; paths in it count from the current folder, as mergekit has it.
        out: The output folder; None where it is not known yet.
        sample: Whether slices of the weights are read.
        lora_cache: Where mergekit keeps merged LoRAs; None where it is not known yet.
        weighted: Whether weights must be there already.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        yield error(str(path), f"it cannot be read ({problem}).")
        return
    content, found = recipe.parsed(text)
    yield from found
    if not content:
        return
    yield from recipe.checked(content)
    yield from recipe.lacking(content, weighted)
    named = list(dict.fromkeys(_models(content)))
    base_name = content.get("base_model")
    base_name = None if base_name is None else str(base_name)
    method = str(content.get("merge_method"))
    listed = list(_listed(content))
    yield from inputs.names(listed, base_name)
    if method in variants.names():
        yield from inputs.moved_layers(content, method)
    read: dict[str, Checkpoint] = {}
    for model in named:
        checkpoint, own = checkpoints.read(model)
        yield from own
        yield from adapters.checked(model, lora_cache)
        if checkpoint is not None:
            read[model] = checkpoint
            yield from checkpoints.of_dtypes(checkpoint)
    base = read.get(base_name or "") or next(iter(read.values()), None)
    if base is not None:
        has_tokenizer = bool(content.get("tokenizer") or content.get("tokenizer_source"))
        for checkpoint in read.values():
            if checkpoint is base or content.get("slices"):
                continue
            yield from inputs.beside_base(checkpoint, base, has_tokenizer)
            if sample:
                yield from inputs.sampled(checkpoint, base)
        yield from inputs.filters(content, base)
        yield from output.needs(content, base, out or Path())
    if out is not None:
        yield from output.folder(out, named)


def check_folder(folder: Path, verify: str | None) -> Iterator[Finding]:
    """What is wrong with a merged folder.

    Args:
        folder: That a merge wrote.
        verify: "sample" or "all": which tensors are computed again; None for none.
    """
    yield from merged.checked(folder)
    if verify is not None:
        from dppa_mergekit.checks.verify import verified

        yield from verified(folder, verify == "all")


def _listed(content: Mapping[str, object]) -> Iterator[str]:
    """The models of the recipe's own list."""
    held = content.get("models")
    for each in held if isinstance(held, list) else ():
        if isinstance(each, dict) and "model" in each:
            yield str(each["model"])


def _models(content: object) -> Iterator[str]:
    """Every model that a recipe names, wherever."""
    if isinstance(content, list):
        for each in content:
            yield from _models(each)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key in ("model", "base_model") and isinstance(value, str):
                yield value
            elif key in ("models", "slices", "modules", "sources") or isinstance(value, dict):
                yield from _models(value)
