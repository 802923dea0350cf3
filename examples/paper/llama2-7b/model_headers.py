"""Shapes of LLaMA-2-7B and its fine-tuned models, and checkpoints that hold only their headers."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

LAYERS, HIDDEN, INTERMEDIATE, CONTEXT = 32, 4096, 11008, 4096

BYTES = 2
"""Bytes of an element in float16, in which models are merged and evaluated."""

SHARD_BYTES = 5e9
"""Bytes of a shard of the inputs and of the output, whose default mergekit sets."""

ELEMENT_BYTES = {"F16": 2, "F32": 4}
"""Type of a tensor, as safetensors names it -> bytes of an element."""


@dataclass(frozen=True)
class Stored:
    """How a model is published.

    Attributes:
        rows: Rows of its embedding.
        words: Number of words of its tokenizer.
        dtype: Type of its tensors, as safetensors names it.
    """

    rows: int
    words: int
    dtype: str

    @property
    def element_bytes(self) -> int:
        """Bytes of an element."""
        return ELEMENT_BYTES[self.dtype]

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return self.element_bytes * count_parameters(self.rows)


MODELS = {
    "meta-llama/Llama-2-7b-hf": Stored(32000, 32000, "F16"),
    "GAIR/Abel-7B-001": Stored(32032, 32001, "F32"),
    "AdaptLLM/finance-chat": Stored(32001, 32001, "F32"),
    "AdaptLLM/law-chat": Stored(32001, 32001, "F32"),
}
"""Name on the Hub -> how the model is published, by its configuration and files there."""


def list_shapes(rows: int = 32000) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of LLaMA-2-7B.

    Args:
        rows: Rows of the embedding.
    """
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, HIDDEN)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        for name in "qkvo":
            shapes[f"{block}.self_attn.{name}_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{block}.mlp.gate_proj.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[f"{block}.mlp.up_proj.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[f"{block}.mlp.down_proj.weight"] = (HIDDEN, INTERMEDIATE)
        shapes[f"{block}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{block}.post_attention_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    shapes["lm_head.weight"] = (rows, HIDDEN)
    return shapes


def count_parameters(rows: int = 32000) -> int:
    """Return the number of parameters of LLaMA-2-7B with an embedding of so many rows."""
    return sum(math.prod(shape) for shape in list_shapes(rows).values())


def write_headers(folder: Path, stored: Stored) -> None:
    """Write a checkpoint with a model's shapes; its weights are holes in sparse files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": {"F16": "float16", "F32": "float32"}[stored.dtype],
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": stored.rows,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    _write_json(folder / "config.json", config)
    words = {f"word {number}": number for number in range(min(stored.words, 32000))}
    words |= {f"[PAD {number}]": number for number in range(32000, stored.words)}
    _write_json(folder / "tokenizer.json", {"model": {"type": "WordLevel", "vocab": words}})
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


def _fill_shards(stored: Stored) -> list[dict[str, tuple[int, ...]]]:
    """Return the tensors of each shard, name -> shape."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in list_shapes(stored.rows).items():
        size = stored.element_bytes * math.prod(shape)
        if filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    return shards


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
