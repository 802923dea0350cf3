"""What is known of a model without its weights: headers, configuration, tokenizer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dppa_mergekit.checkpoints.safetensors_header import FLOATING, Header

TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
"""Files of which a tokenizer has at least one."""

DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Name of a dtype in safetensors headers -> in config.json."""


@dataclass(frozen=True)
class CheckpointFacts:
    """What is known of a model without its weights.

    Attributes:
        model: The model as the recipe spells it.
        folder: Its folder; None on the Hub.
        tensors: Name -> header; empty where headers cannot be read.
        files: Name of a tensor -> the file in the folder that holds it; empty on the Hub.
        config: The content of config.json.
        vocabulary: Token -> id; empty where there is no tokenizer.json.
        added_tokens: Those that were added to the vocabulary.
        chat_template: The chat template, if there is one.
        end_tokens: The ids of the tokens that end an answer, by the configurations.
        has_tokenizer: Whether there is a file of a tokenizer.
        tokenizer_kind: The kind of tokenizer that tokenizer.json describes, such as BPE.
    """

    model: str
    folder: Path | None
    tensors: Mapping[str, Header]
    files: Mapping[str, str]
    config: Mapping[str, object] = field(default_factory=dict)
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    added_tokens: frozenset[str] = frozenset()
    chat_template: str | None = None
    end_tokens: frozenset[int] = frozenset()
    has_tokenizer: bool = False
    tokenizer_kind: str | None = None

    @property
    def dtype(self) -> str:
        """The commonest floating dtype of its tensors, as in headers; "none" without any."""
        dtypes = [header.dtype for header in self.tensors.values() if header.dtype in FLOATING]
        return Counter(dtypes).most_common(1)[0][0] if dtypes else "none"


def read_facts(
    model: str,
    folder: Path | None,
    tensors: Mapping[str, Header],
    files: Mapping[str, str],
    small_files: Path,
) -> CheckpointFacts:
    """Complete the headers of a model with its configuration and its tokenizer.

    Args:
        model: The model as the recipe spells it.
        folder: Its folder; None on the Hub.
        tensors: Name -> header.
        files: Name of a tensor -> the file in the folder that holds it.
        small_files: The folder with config.json and the tokenizer's files, as far as they exist.
    """
    config = read_json(small_files / "config.json") or {}
    return CheckpointFacts(
        model,
        folder,
        tensors,
        files,
        config,
        *_read_vocabulary(small_files),
        _read_chat_template(small_files),
        _read_end_tokens(small_files, config),
        any((small_files / name).exists() for name in TOKENIZERS),
        _read_tokenizer_kind(small_files),
    )


def read_json(path: Path) -> dict[str, object] | None:
    """Return the mapping in a JSON file; None if it cannot be read or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _read_vocabulary(folder: Path) -> tuple[dict[str, int], frozenset[str]]:
    """Return token -> id, and the tokens that were added to the vocabulary."""
    content = read_json(folder / "tokenizer.json") or {}
    model, added = content.get("model"), content.get("added_tokens")
    stored = model.get("vocab") if isinstance(model, dict) else None
    vocabulary: dict[str, int] = {}
    if isinstance(stored, dict):
        vocabulary.update((str(token), int(number)) for token, number in stored.items())
    elif isinstance(stored, list):
        vocabulary.update(
            (str(pair[0]), number) for number, pair in enumerate(stored) if isinstance(pair, list)
        )
    more = {
        str(token.get("content")): token["id"]
        for token in (added if isinstance(added, list) else ())
        if isinstance(token, dict) and isinstance(token.get("id"), int)
    }
    return {**vocabulary, **more}, frozenset(more)


def _read_tokenizer_kind(folder: Path) -> str | None:
    model = (read_json(folder / "tokenizer.json") or {}).get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    return kind if isinstance(kind, str) else None


def _read_chat_template(folder: Path) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8", errors="replace")
    template = (read_json(folder / "tokenizer_config.json") or {}).get("chat_template")
    return template if isinstance(template, str) else None


def _read_end_tokens(folder: Path, config: Mapping[str, object]) -> frozenset[int]:
    generation = read_json(folder / "generation_config.json") or {}
    stored = generation.get("eos_token_id", config.get("eos_token_id"))
    tokens = stored if isinstance(stored, list) else [stored]
    return frozenset(token for token in tokens if isinstance(token, int))
