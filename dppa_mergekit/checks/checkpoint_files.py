"""The files of a model, in a folder or on the Hub; no weights are read.

For a name on the Hub, huggingface_hub fetches the headers by range requests.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from dppa_mergekit.checkpoints.safetensors_header import (
    INDEX,
    PLAIN_DTYPES,
    SINGLE,
    TWO_LAYOUTS,
    Header,
    has_two_layouts,
    read_headers,
)
from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts, read_facts, read_json
from dppa_mergekit.checks.findings import Finding, error, note, warning
from dppa_mergekit.errors import CheckpointError
from dppa_mergekit.recipes.references import Place, named
from dppa_mergekit.report.phrases import count, join_names, such_as

SINGLES = (SINGLE, "pytorch_model.bin")
INDEXES = (INDEX, "pytorch_model.bin.index.json")
"""The files that mergekit looks for, in this order (mergekit/io/lazy_tensor_loader.py, 0.1.5)."""

ADAPTER = "adapter_config.json"

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "tokenizer.json",
)
"""Files that are fetched from the Hub, beside headers."""


def inspect_model(
    model: str, beside: Path | None = None
) -> tuple[CheckpointFacts | None, list[Finding]]:
    """Return the facts of a model and what is wrong with its files; no facts if it is not found.

    Args:
        model: A model of a recipe, as `spell` gives it.
        beside: The folder of the recipe.
    """
    reference = named(model)
    place = reference.model
    if os.path.isdir(place.path):
        return inspect_folder(Path(place.path), model)
    if beside is not None and os.path.isdir(os.path.join(beside, place.path)):
        sentence = (
            "there is no such folder here, but there is one beside the recipe: mergekit counts "
            "paths from the current folder."
        )
        return None, [error(model, sentence)]
    if place.path.startswith(("/", ".", "~")) or place.path.count("/") > 1:
        return None, [error(model, "there is no such folder.")]
    return _inspect_repository(place, model)


def inspect_folder(folder: Path, model: str) -> tuple[CheckpointFacts, list[Finding]]:
    """Return the facts of a model in a folder, and what is wrong with its files."""
    findings = [error(model, TWO_LAYOUTS)] if has_two_layouts(folder) else []
    # mergekit prefers safetensors to pickles, and an index to a single file.
    kind = next(
        (
            pair
            for pair in zip(SINGLES, INDEXES, strict=True)
            if any((folder / name).exists() for name in pair)
        ),
        None,
    )
    index: dict[str, str] = {}
    names: list[str] = []
    if kind is not None:
        single, index_file = kind
        if (folder / index_file).exists():
            index = _read_index(folder / index_file, model, findings)
            names = sorted(set(index.values()))
        else:
            names = [single]
    tensors: dict[str, Header] = {}
    files: dict[str, str] = {}
    for name in names:
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            findings.append(error(model, f"its index points outside the folder, to {name}."))
            continue
        if not path.exists():
            findings.append(error(model, f"its index names {name}, which is not there."))
            continue
        try:
            headers = _read_any_headers(path)
        except CheckpointError as problem:
            findings.append(error(model, str(problem)))
            continue
        tensors.update(headers)
        files.update(dict.fromkeys(headers, name))
    findings.extend(_check_index(index, files, model, findings))
    if not names and not findings:
        findings.append(error(model, _explain_no_weights(folder)))
    if read_json(folder / "config.json") is None:
        findings.append(error(model, "config.json is missing, empty or not JSON."))
    return read_facts(model, folder, tensors, files, folder), findings


def _read_any_headers(path: Path) -> dict[str, Header]:
    """Return the header of every tensor in a file of either format. Raises CheckpointError."""
    if path.suffix.lower() == ".safetensors":
        return read_headers(path)
    # Imports torch, so only here.
    from dppa_mergekit.checkpoints.pickled_header import read_pickled_headers

    return read_pickled_headers(path)


def _explain_no_weights(folder: Path) -> str:
    """Return why a folder has no weights that mergekit reads."""
    if (folder / ADAPTER).exists():
        return "it is a LoRA, not a whole model: write model+LoRA."
    others = sorted(
        path.name for kind in ("*.safetensors", "*.bin", "*.pth") for path in folder.glob(kind)
    )
    if not others:
        return "there are no weights in the folder."
    return (
        f"its weights are in {others[0]}, and mergekit reads {join_names(SINGLES)} and their "
        f"indexes only: rename or convert them."
    )


def _read_index(path: Path, model: str, findings: list[Finding]) -> dict[str, str]:
    """Return tensor -> file by an index; empty and with a finding if it is damaged."""
    content = read_json(path)
    weight_map = None if content is None else content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        findings.append(error(model, f"{path.name} is damaged."))
        return {}
    return {str(name): str(file) for name, file in weight_map.items()}


def _check_index(
    index: dict[str, str], files: dict[str, str], model: str, before: list[Finding]
) -> list[Finding]:
    """Return where an index is wrong about tensors.

    Args:
        index: Tensor -> its file by the index.
        files: Tensor -> the file that holds it.
        model: The model as the recipe spells it.
        before: Earlier findings. Tensors that no file holds are only reported if none is an error.
    """
    findings = [
        error(model, f"its index says that {name} is in {file}, but it is not.")
        for name, file in index.items()
        if name in files and files[name] != file
    ]
    if not any(finding.severity == "error" for finding in (*before, *findings)):
        findings += [
            error(model, f"its index names tensor {name}, which no file holds.")
            for name in index
            if name not in files
        ]
    return findings


def _inspect_repository(place: Place, model: str) -> tuple[CheckpointFacts | None, list[Finding]]:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, NotASafetensorsRepoError

    repository, revision = place.path, place.revision
    try:
        metadata = HfApi().get_safetensors_metadata(repository, revision=revision)
        small_files = Path(os.devnull)
        for file in SMALL_FILES:
            with contextlib.suppress(EntryNotFoundError):
                downloaded = hf_hub_download(repository, file, revision=revision)
                small_files = Path(downloaded).parent
    except NotASafetensorsRepoError:
        return None, [note(model, "it has no safetensors files, so its tensors are not checked.")]
    # The client raises many kinds: no network, no such name, no right to see it.
    except Exception as problem:
        reason = " ".join(str(problem).split())[:200].rstrip(".")
        sentence = f"it is neither a local folder nor a repository on the Hub ({reason})."
        return None, [error(model, sentence)]
    tensors = {
        tensor: Header(str(described.dtype), tuple(described.shape))
        for shard in metadata.files_metadata.values()
        for tensor, described in shard.tensors.items()
    }
    return read_facts(model, None, tensors, {}, small_files), []


def check_dtypes(facts: CheckpointFacts) -> list[Finding]:
    """Return an error if a merge cannot read the weights as numbers."""
    quantised = {
        name: header.dtype
        for name, header in facts.tensors.items()
        if header.dtype not in PLAIN_DTYPES and name.endswith("weight")
    }
    if not quantised:
        return []
    name, dtype = next(iter(quantised.items()))
    return [
        error(
            facts.model,
            f"{count(len(quantised), 'weight is', 'weights are')} quantised ({name} is {dtype}): "
            f"quantised numbers mean nothing without their scales; merge an unquantised "
            f"checkpoint.",
        )
    ]


def check_architecture(facts: CheckpointFacts) -> list[Finding]:
    """Return an error if config.json does not name one architecture."""
    named = facts.config.get("architectures")
    if not facts.config or (isinstance(named, list) and len(named) == 1):
        return []
    found = f"architectures {named}" if "architectures" in facts.config else "no architectures"
    return [
        error(
            facts.model,
            f"config.json has {found}; mergekit merges models of exactly one, such as "
            f'["LlamaForCausalLM"].',
        )
    ]


def find_strays(folder: Path, files: Collection[str]) -> list[Path]:
    """Return the weight files of a merged folder that are not of its merge.

    Args:
        folder: The folder.
        files: The names of the files that hold its tensors.
    """
    kinds = ("*.safetensors", "*.bin", ".tmp*", "*.tmp")
    return sorted(path for kind in kinds for path in folder.glob(kind) if path.name not in files)


def check_strays(facts: CheckpointFacts) -> Iterator[Finding]:
    """Yield weight files that are not of the merge, and those that others cannot read."""
    if facts.folder is None or not facts.files:
        return
    files = set(facts.files.values())
    strays = [path.name for path in find_strays(facts.folder, files)]
    if strays:
        found = such_as(
            strays,
            "weight file is not of this merge",
            "weight files are not of this merge",
        )
        yield warning(
            facts.model,
            f"{found}: left over from an older merge, or from one that was killed; remove what you "
            f"do not need.",
        )
    closed = [name for name in files if not (facts.folder / name).stat().st_mode & 0o044]
    if closed and os.name == "posix":
        found = such_as(closed, "weight file", "weight files")
        yield note(facts.model, f"only its owner can read {found}.")
