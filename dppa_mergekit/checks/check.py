"""What `mergekit-dppa check` does: all checks of a recipe, or of a merged folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dppa_mergekit import method_table
from dppa_mergekit.checks import (
    adapters,
    checkpoint_files,
    merged_folder,
    model_compatibility,
    output_folder,
    recipe_text,
    tensors,
)
from dppa_mergekit.checks.checkpoint_files import Checkpoint
from dppa_mergekit.checks.findings import Finding, error, note
from dppa_mergekit.recipes import holders


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
    content, found = recipe_text.parsed(text)
    yield from found
    if not content:
        return
    yield from recipe_text.checked(content)
    yield from recipe_text.lacking(content, weighted)
    named = list(dict.fromkeys(_models(content)))
    # What is wrong in one slice may be wrong in every other.
    yield from dict.fromkeys(
        finding
        for models, base in _lists(content)
        for finding in model_compatibility.names(models, base)
    )
    if (method := str(content.get("merge_method"))) in method_table.names():
        yield from model_compatibility.moved_layers(content, method)
    read: dict[str, Checkpoint] = {}
    for model in named:
        checkpoint, own = checkpoint_files.read(model)
        yield from own
        yield from adapters.checked(model, lora_cache)
        if checkpoint is not None:
            read[model] = checkpoint
            yield from checkpoint_files.of_dtypes(checkpoint)
    if read:
        yield from _together(content, read, sample, out or Path())
    if out is not None:
        yield from output_folder.folder(out, named)


def check_folder(folder: Path, verify: str | None) -> Iterator[Finding]:
    """What is wrong with a merged folder.

    Args:
        folder: That a merge wrote.
        verify: "sample" or "all": which tensors are computed again; None for none.
    """
    yield from merged_folder.checked(folder)
    if verify is not None:
        from dppa_mergekit.checks.recompute import verified

        yield from verified(folder, verify == "all")


def _together(
    content: Mapping[str, object], read: Mapping[str, Checkpoint], sample: bool, out: Path
) -> Iterator[Finding]:
    """The models beside their base, or beside the first where the recipe names none."""
    first = next(iter(read.values()))
    base = first if content.get("base_model") is None else read.get(str(content["base_model"]))
    alike: list[Checkpoint] = []
    if base is None:
        yield note("recipe", "its base model is not here to compare the others with.")
    else:
        for each in read.values():
            if each is base:
                continue
            if _in_place(content, each, base):
                alike.append(each)
            else:
                yield note(
                    each.model,
                    "slices may move its layers: it was not compared with the base model.",
                )
        has_tokenizer = bool(content.get("tokenizer") or content.get("tokenizer_source"))
        for each in alike:
            yield from model_compatibility.beside_base(each, base, has_tokenizer)
            if sample:
                yield from model_compatibility.sampled(each, base)
    yield from tensors.checked(content, alike, base or first)
    yield from output_folder.needs(content, base or first, out)


def _in_place(content: Mapping[str, object], fine_tuned: Checkpoint, base: Checkpoint) -> bool:
    """Whether the layers of a model come beside those of the base."""
    if not any(holder.get("slices") for holder in holders(dict(content))):
        return True
    here, there = (each.config.get("num_hidden_layers") for each in (fine_tuned, base))
    return content.get("merge_method") in method_table.names() and here == there


def _lists(content: Mapping[str, object]) -> Iterator[tuple[list[str], str | None]]:
    """Every list of inputs in a recipe, and the base model that they are merged with."""
    for holder in holders(dict(content)):
        base = holder.get("base_model") or content.get("base_model")
        for key in ("models", "sources"):
            listed = holder.get(key)
            named = [
                str(each["model"])
                for each in (listed if isinstance(listed, list) else ())
                if isinstance(each, dict) and "model" in each
            ]
            yield named, base if isinstance(base, str) else None


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
