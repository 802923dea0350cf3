"""The files of a model, in a folder or on the Hub; no weights are read.

For a name on the Hub, huggingface_hub fetches the headers by range requests.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dppa_mergekit.checkpoints.safetensors_header import PLAIN_DTYPES, Header, read_headers
from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts, read_facts, read_json
from dppa_mergekit.checks.findings import Finding, error, note, warning
from dppa_mergekit.errors import CheckpointError
from dppa_mergekit.report.phrases import count

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "tokenizer.json",
)
"""Files that are fetched from the Hub, beside headers."""


def inspect_model(model: str) -> tuple[CheckpointFacts | None, list[Finding]]:
    """Return the facts of a model and what is wrong with its files; no facts if it is not found.

    Args:
        model: A folder or a name on the Hub; a revision follows an @, a LoRA a +.
    """
    path, _, adapter = model.partition("+")
    findings: list[Finding] = []
    if adapter:
        findings.append(
            note(model, "mergekit merges its LoRA first; only the model below it is checked.")
        )
    if os.path.isdir(path):
        facts, own = inspect_folder(Path(path), model)
        return facts, [*findings, *own]
    if path.startswith(("/", ".", "~")) or path.count("/") > 1:
        return None, [*findings, error(model, "there is no such folder.")]
    remote, own = _inspect_repository(path, model)
    return remote, [*findings, *own]


def inspect_folder(folder: Path, model: str) -> tuple[CheckpointFacts, list[Finding]]:
    """Return the facts of a model in a folder, and what is wrong with its files."""
    findings = list(_check_single_file(folder, model))
    index = _read_index(folder, model, findings)
    names = sorted(set(index.values())) if index else _find_files(folder)
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
            headers = read_headers(path)
        except CheckpointError as problem:
            findings.append(error(model, str(problem)))
            continue
        tensors.update(headers)
        files.update(dict.fromkeys(headers, path.name))
    findings.extend(_check_index(index, files, model, findings))
    if not names:
        findings.append(
            note(model, "its weights are pickled (.bin) and have no headers to check.")
            if any(folder.glob("*.bin"))
            else error(model, "there are no weights in the folder.")
        )
    if read_json(folder / "config.json") is None:
        findings.append(error(model, "config.json is missing, empty or not JSON."))
    return read_facts(model, folder, tensors, files, folder), findings


def _check_single_file(folder: Path, model: str) -> Iterator[Finding]:
    if (folder / INDEX).exists() and (folder / SINGLE).exists():
        yield error(
            model,
            f"it holds both {SINGLE} and an index of shards: transformers loads the single file, "
            f"mergekit the shards; remove whichever is stale.",
        )


def _read_index(folder: Path, model: str, findings: list[Finding]) -> dict[str, str]:
    """Return tensor -> file by the index; empty if there is none or, with a finding, if damaged."""
    path = folder / INDEX
    if not path.exists():
        return {}
    content = read_json(path)
    weight_map = None if content is None else content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        findings.append(error(model, f"{INDEX} is damaged."))
        return {}
    return {str(name): str(file) for name, file in weight_map.items()}


def _find_files(folder: Path) -> list[str]:
    """Return the weight files of a folder without an index."""
    if (folder / SINGLE).exists():
        return [SINGLE]
    return sorted(path.name for path in folder.glob("*.safetensors"))


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


def _inspect_repository(name: str, model: str) -> tuple[CheckpointFacts | None, list[Finding]]:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, NotASafetensorsRepoError

    repository, _, revision = name.partition("@")
    try:
        metadata = HfApi().get_safetensors_metadata(repository, revision=revision or None)
        small_files = Path(os.devnull)
        for file in SMALL_FILES:
            with contextlib.suppress(EntryNotFoundError):
                downloaded = hf_hub_download(repository, file, revision=revision or None)
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


def find_stale_files(folder: Path) -> list[Finding]:
    """Return a warning for every weight file of a folder that its index does not name."""
    indexed = set(_read_index(folder, str(folder), []).values())
    if not indexed:
        return []
    return [
        warning(
            str(folder), f"{path.name} is not in the index: it is left over from another merge."
        )
        for path in sorted(folder.glob("*.safetensors"))
        if path.name not in indexed and path.name != SINGLE
    ]
