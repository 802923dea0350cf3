"""What a LoRA holds, and whether it fits the model that it is to be merged into.

The names and keys are those of PEFT: `base_model.model.<module>.lora_A.weight` (rank, inputs) and
`.lora_B.weight` (outputs, rank), beside adapter_config.json.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from dppa_mergekit.checkpoints.safetensors_header import Header, read_headers
from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts, read_json
from dppa_mergekit.checks.checkpoint_files import ADAPTER
from dppa_mergekit.checks.findings import Finding, error, note, warning
from dppa_mergekit.errors import CheckpointError
from dppa_mergekit.recipes.references import identity, named
from dppa_mergekit.report.phrases import join_names, such_as
from dppa_mergekit.tensor_names import is_output_head

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B)\.(?:[^.]+\.)?weight")
"""Matches the name of a factor: the module, and which of the two."""


def check_contents(folder: Path, model: str, below: CheckpointFacts | None) -> Iterator[Finding]:
    """Yield what is wrong with an adapter in a folder.

    Args:
        folder: The folder of the adapter.
        model: The model with its adapter, as the recipe spells it.
        below: What is known of the model below the adapter; None if nothing is.
    """
    config = read_json(folder / ADAPTER)
    if config is None:
        yield error(model, f"{folder / ADAPTER} is missing, empty or not JSON.")
        return
    weights = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if weights is None:
        yield error(model, f"{folder} holds no weights; allowed are {join_names(WEIGHTS)}.")
        return
    is_plain = config.get("peft_type", "LORA") == "LORA" and not config.get("target_parameters")
    if is_plain and weights.suffix == ".safetensors":
        try:
            headers = read_headers(weights)
        except CheckpointError as problem:
            yield error(model, str(problem))
            return
        yield from _check_rank(model, config, headers)
        if below is not None and below.tensors:
            yield from _check_modules(model, headers, below)
            yield from _check_replaced(model, headers, below)
    trained_on = config.get("base_model_name_or_path")
    if isinstance(trained_on, str) and trained_on:
        path = str(named(model).model)
        if identity(trained_on) != identity(path) and os.path.basename(
            trained_on.rstrip("/")
        ) != os.path.basename(path.rstrip("/")):
            # A folder may be a copy of what is called otherwise on the Hub.
            is_copy = os.path.isdir(path) and not os.path.isdir(trained_on)
            report = note if is_copy else warning
            yield report(model, f"its LoRA was trained on {trained_on}, and is given on {path}.")
    if config.get("modules_to_save"):
        saved = join_names([str(name) for name in _as_list(config["modules_to_save"])])
        yield note(model, f"its LoRA replaces whole modules, too: {saved}.")


def _as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _check_rank(
    model: str, config: Mapping[str, object], headers: Mapping[str, Header]
) -> Iterator[Finding]:
    """Yield a rank that is none, or that the stored factors do not have."""
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        yield error(model, f"its LoRA has rank {rank}; allowed is a whole number of at least 1.")
        return
    if config.get("rank_pattern"):
        return
    others = {
        name: header.shape
        for name, header in headers.items()
        if (found := FACTOR.fullmatch(name))
        and len(header.shape) == 2
        and header.shape[0 if found[2] == "A" else 1] != rank
    }
    if others:
        found_in = such_as(others, "factor has another rank", "factors have another rank")
        yield error(model, f"its LoRA has rank {rank}, and {found_in}.")


def _check_modules(
    model: str, headers: Mapping[str, Header], below: CheckpointFacts
) -> Iterator[Finding]:
    """Yield modules that the model below does not have, or has in another shape."""
    factors: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, header in headers.items():
        found = FACTOR.fullmatch(name)
        if found:
            factors.setdefault(found[1], {})[found[2]] = header.shape
    if not factors:
        if not any("lora_embedding" in name for name in headers):
            yield error(model, "its LoRA has no factors lora_A and lora_B.")
        return
    # A checkpoint may leave out the prefix of its base model, as GPT-2's on the Hub do.
    stored = {module: _stored_name(module, below) for module in factors}
    tied = bool(below.config.get("tie_word_embeddings"))
    missing = [
        module
        for module, found_as in stored.items()
        if found_as is None and not (tied and is_output_head(f"{module}.weight"))
    ]
    if missing:
        found_in = such_as(
            missing,
            "module of its LoRA is not in the model below",
            "modules of its LoRA are not in the model below",
        )
        yield warning(model, f"{found_in}: stored under another name, or not there.")
    unfit = [
        module
        for module, shapes in factors.items()
        if (weight := stored[module]) is not None
        and shapes.keys() == {"A", "B"}
        and {shapes["A"][-1], shapes["B"][0]} != {*below.tensors[weight].shape}
    ]
    if unfit:
        found_in = such_as(
            unfit,
            "module of its LoRA has other sizes than in the model below",
            "modules of its LoRA have other sizes than in the model below",
        )
        yield error(model, f"{found_in}.")


def _check_replaced(
    model: str, headers: Mapping[str, Header], below: CheckpointFacts
) -> Iterator[Finding]:
    """Yield tensors of replaced modules that have another shape than in the model below."""
    unfit = [
        own
        for name, header in headers.items()
        if not FACTOR.fullmatch(name)
        and (own := name.removeprefix("base_model.model.")) in below.tensors
        and header.shape != below.tensors[own].shape
    ]
    if unfit:
        found_in = such_as(
            unfit,
            "tensor that its LoRA replaces has another shape in the model below",
            "tensors that its LoRA replaces have other shapes in the model below",
        )
        yield error(model, f"{found_in}: PEFT cannot load it.")


def _stored_name(module: str, below: CheckpointFacts) -> str | None:
    """Return the name under which a model stores a module's weight; None if it is not found."""
    names = [f"{module}.weight", f"{module.partition('.')[2]}.weight"]
    return next((name for name in names if name in below.tensors), None)
