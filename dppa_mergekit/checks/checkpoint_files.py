"""Checkpoints by their headers, configuration and tokenizer; no weights are read.

A folder's safetensors headers are read here as the format has them: eight bytes that say how long
the header is, and JSON. Of a name on the Hub, huggingface_hub fetches headers by range requests.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dppa_mergekit.checks.findings import Finding, error, note, warning
from dppa_mergekit.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "tokenizer.json",
)
"""What is fetched of a name on the Hub, beside headers."""

WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of an element, of the dtypes that a merge can be in."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        dtype: As safetensors names it.
        shape: Of the tensor.
        file: Its name; empty on the Hub.
        start: Where its bytes begin in the file.
        size: How many there are.
    """

    dtype: str
    shape: tuple[int, ...]
    file: str = ""
    start: int = 0
    size: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """What is known of a model without reading its weights.

    Attributes:
        model: As the recipe spells it.
        folder: Where it is; None on the Hub.
        tensors: By name; empty where they could not be looked at.
        config: Of config.json.
        vocabulary: Token -> number; empty where there is no tokenizer.json.
        template: The chat template, if there is one.
        ends: The tokens that end an answer, as the configurations name them.
    """

    model: str
    folder: Path | None
    tensors: Mapping[str, Stored]
    config: Mapping[str, object] = field(default_factory=dict)
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    template: str | None = None
    ends: frozenset[int] = frozenset()


def headers(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: It is truncated, or no safetensors file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError("the header is cut off")
            content = json.loads(file.read(length))
        content.pop("__metadata__", None)
        found = {}
        for name, each in content.items():
            start, end = each["data_offsets"]
            place = 8 + length + start
            found[name] = Stored(each["dtype"], tuple(each["shape"]), path.name, place, end - start)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise CheckpointError(f"{path} is truncated or damaged ({problem}).") from problem
    last = max((each.start + each.size for each in found.values()), default=8 + length)
    if last > size:
        raise CheckpointError(f"{path} is truncated: {size} of {last} bytes are there.")
    return found


def read(model: str) -> tuple[Checkpoint | None, list[Finding]]:
    """A model of a recipe, and what is wrong with it by itself; None where it is not there.

    Args:
        model: A folder or a name on the Hub; with a revision after @, and a LoRA after +.
    """
    path, _, adapter = model.partition("+")
    found: list[Finding] = []
    if adapter:
        found.append(
            note(model, "its LoRA is merged before the merge; only the model below it is checked.")
        )
    if os.path.isdir(path):
        checkpoint, own = of_folder(Path(path), model)
        return checkpoint, [*found, *own]
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        return None, [*found, error(model, "there is no such folder.")]
    remote, own = _of_hub(path, model)
    return remote, [*found, *own]


def of_folder(folder: Path, model: str) -> tuple[Checkpoint, list[Finding]]:
    """A folder's checkpoint, and what is wrong with it."""
    found = list(_misplaced(folder, model))
    tensors: dict[str, Stored] = {}
    placed = _index(folder, model, found)
    files = sorted(set(placed.values())) if placed else _loose(folder)
    for name in files:
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            found.append(error(model, f"its index points outside the folder, to {name}."))
            continue
        if not path.exists():
            found.append(error(model, f"its index names {name}, which is not there."))
            continue
        try:
            tensors.update(headers(path))
        except CheckpointError as problem:
            found.append(error(model, str(problem)))
    for name, file in placed.items():
        if name in tensors and tensors[name].file != file:
            found.append(error(model, f"its index says that {name} is in {file}, and it is not."))
    whole = not any(each.severity == "error" for each in found)
    for name in placed if whole else ():
        if name not in tensors:
            found.append(error(model, f"its index names tensor {name}, which no file holds."))
    if not files:
        binary = sorted(each.name for each in folder.glob("*.bin"))
        found.append(
            note(model, "its weights are pickled (.bin): they have no headers to be checked.")
            if binary
            else error(model, "there are no weights in the folder.")
        )
    config = _json(folder / "config.json")
    if config is None:
        found.append(error(model, "config.json is missing, empty or no JSON."))
    return (
        Checkpoint(
            model,
            folder,
            tensors,
            config or {},
            _vocabulary(folder),
            _template(folder),
            _ends(folder, config or {}),
        ),
        found,
    )


def _misplaced(folder: Path, model: str) -> Iterator[Finding]:
    if (folder / INDEX).exists() and (folder / SINGLE).exists():
        yield error(
            model,
            f"it holds both {SINGLE} and an index of shards: transformers loads the single file, "
            f"mergekit the shards; remove what is stale.",
        )


def _index(folder: Path, model: str, found: list[Finding]) -> dict[str, str]:
    """Tensor -> file, of the index; empty where there is none."""
    path = folder / INDEX
    if not path.exists():
        return {}
    content = _json(path)
    placed = None if content is None else content.get("weight_map")
    if not isinstance(placed, dict) or not placed:
        found.append(error(model, f"{INDEX} is damaged."))
        return {}
    return {str(name): str(file) for name, file in placed.items()}


def _loose(folder: Path) -> list[str]:
    if (folder / SINGLE).exists():
        return [SINGLE]
    return sorted(path.name for path in folder.glob("*.safetensors"))


def _of_hub(name: str, model: str) -> tuple[Checkpoint | None, list[Finding]]:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, NotASafetensorsRepoError

    repository, _, revision = name.partition("@")
    try:
        metadata = HfApi().get_safetensors_metadata(repository, revision=revision or None)
        folder = Path(os.devnull)
        for file in _SMALL:
            with contextlib.suppress(EntryNotFoundError):
                folder = Path(hf_hub_download(repository, file, revision=revision or None)).parent
    except NotASafetensorsRepoError:
        return None, [note(model, "it has no safetensors files; its tensors are not looked at.")]
    # Whatever the client raises: no network, no such name, no right to see it.
    except Exception as problem:
        reason = " ".join(str(problem).split())[:200].rstrip(".")
        return None, [error(model, f"it is no folder, and the Hub has it not ({reason}).")]
    tensors = {
        tensor: Stored(str(each.dtype), tuple(each.shape))
        for held in metadata.files_metadata.values()
        for tensor, each in held.tensors.items()
    }
    config = _json(folder / "config.json") or {}
    return (
        Checkpoint(
            model,
            None,
            tensors,
            config,
            _vocabulary(folder),
            _template(folder),
            _ends(folder, config),
        ),
        [],
    )


def _json(path: Path) -> dict[str, object] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _vocabulary(folder: Path) -> dict[str, int]:
    content = _json(folder / "tokenizer.json") or {}
    model, added = content.get("model"), content.get("added_tokens")
    held = model.get("vocab") if isinstance(model, dict) else None
    found: dict[str, int] = {}
    if isinstance(held, dict):
        found.update((str(token), int(number)) for token, number in held.items())
    elif isinstance(held, list):
        found.update(
            (str(each[0]), number) for number, each in enumerate(held) if isinstance(each, list)
        )
    for each in added if isinstance(added, list) else ():
        if isinstance(each, dict) and isinstance(each.get("id"), int):
            found[str(each.get("content"))] = each["id"]
    return found


def _template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8", errors="replace")
    held = (_json(folder / "tokenizer_config.json") or {}).get("chat_template")
    return held if isinstance(held, str) else None


def _ends(folder: Path, config: Mapping[str, object]) -> frozenset[int]:
    generation = _json(folder / "generation_config.json") or {}
    held = generation.get("eos_token_id", config.get("eos_token_id"))
    every = held if isinstance(held, list) else [held]
    return frozenset(each for each in every if isinstance(each, int))


def of_dtypes(checkpoint: Checkpoint) -> list[Finding]:
    """Weights that a merge cannot read as numbers."""
    strange = {
        name: each.dtype
        for name, each in checkpoint.tensors.items()
        if each.dtype not in (*WIDTHS, "I64", "BOOL") and name.endswith("weight")
    }
    if not strange:
        return []
    name, dtype = next(iter(strange.items()))
    return [
        error(
            checkpoint.model,
            f"{len(strange)} weights are quantised ({name} is {dtype}): their numbers mean "
            f"nothing without their scales; merge an unquantised checkpoint.",
        )
    ]


def stale(folder: Path) -> list[Finding]:
    """Weight files of a folder that its index does not name."""
    named = set(_index(folder, str(folder), []).values())
    if not named:
        return []
    return [
        warning(str(folder), f"{path.name} is not in the index: it is left from another merge.")
        for path in sorted(folder.glob("*.safetensors"))
        if path.name not in named and path.name != SINGLE
    ]
