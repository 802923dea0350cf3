"""How the large models are published, and checkpoints that hold only their headers."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from architectures import Architecture

SHARD_BYTES = 5e9
"""Bytes of a shard of the inputs and of the output, whose default mergekit sets."""

DTYPES = {"F16": ("float16", 2), "BF16": ("bfloat16", 2), "F32": ("float32", 4)}
"""Type of a tensor, as safetensors names it -> its name in a configuration, bytes of an element."""


@dataclass(frozen=True)
class StoredModel:
    """How a model is published.

    Attributes:
        architecture: Its architecture.
        rows: Rows of its embedding.
        words: Number of words of its tokenizer.
        dtype: Type of its tensors, as safetensors names it.
        pickled_bytes: Bytes of its largest .bin file, which mergekit reads as a whole; 0 where the
            model is published as safetensors.
    """

    architecture: Architecture
    rows: int
    words: int
    dtype: str
    pickled_bytes: float = 0

    @property
    def element_bytes(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype][1]

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return self.element_bytes * self.architecture.parameters(self.rows)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor."""
        return self.architecture.shapes(self.rows)


def write_headers(folder: Path, stored: StoredModel) -> None:
    """Write a checkpoint with a model's shapes; its weights are holes in sparse files."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = DTYPES[stored.dtype][0]
    configuration = {**stored.architecture.configuration(stored.rows), "dtype": dtype}
    _write_json(folder / "config.json", configuration)
    tokenizer = _make_tokenizer(stored.architecture.vocabulary, stored.words)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    shards = _fill_shards(stored)
    index = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, end = {}, 0
        for name, shape in shard.items():
            start, end = end, end + stored.element_bytes * math.prod(shape)
            header[name] = {
                "dtype": stored.dtype,
                "shape": list(shape),
                "data_offsets": [start, end],
            }
            index[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as opened:
            opened.write(struct.pack("<Q", len(text)) + text)
            opened.truncate(8 + len(text) + end)
    content = {"metadata": {"total_size": stored.bytes}, "weight_map": index}
    _write_json(folder / "model.safetensors.index.json", content)


@lru_cache
def _make_tokenizer(known: int, words: int) -> str:
    """Return a tokenizer's file; what goes beyond the known words is padding."""
    vocabulary = {f"word {number}": number for number in range(min(words, known))}
    vocabulary |= {f"[PAD {number}]": number for number in range(known, words)}
    return json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary}})


def _fill_shards(stored: StoredModel) -> list[dict[str, tuple[int, ...]]]:
    """Return the tensors of each shard, name -> shape."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in stored.shapes().items():
        size = stored.element_bytes * math.prod(shape)
        if filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    return shards


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
