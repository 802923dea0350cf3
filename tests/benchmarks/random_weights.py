"""Write the missing models of a family; random_models.py runs this script.

It writes tensor by tensor with one shard in memory and never builds a model. Drawing a normal
number for each element would take most of the time. So numbers are drawn once, into a pool, and
every tensor takes them from an offset of its own, which follows from the seed, the model and the
name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from random import Random

import click
import torch
from model_sizes import BYTES_PER_PARAMETER, Shape
from random_models import SEED, SPARSE_PARTS, Family, add_family_options
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tqdm import tqdm
from transformers import LlamaConfig, PreTrainedTokenizerFast

BASE_DEVIATION = 0.02
DELTA_DEVIATIONS = (5e-4, 4e-3)
"""Lowest and highest deviation of the deltas of linears, embeddings and `lm_head`."""
NORM_DEVIATION = 0.02
"""Next to 1, bfloat16 has steps of 0.004 and 0.008; a smaller delta would be lost."""

_POOL = 1 << 26  # more elements than any linear of these sizes has
_CHUNK = 1 << 18  # elements that fit the cache


class Pool:
    """Normal numbers that are drawn once."""

    def __init__(self) -> None:
        drawn = torch.randn(_POOL, generator=torch.Generator().manual_seed(SEED))
        # The head is repeated after the tail, so that every chunk is contiguous.
        self._numbers = torch.cat([drawn, drawn[:_CHUNK]])

    def make_tensor(
        self, shape: tuple[int, ...], mean: float, parts: Mapping[str, float]
    ) -> torch.Tensor:
        """Return a bfloat16 tensor: the mean plus the sum of independent parts.

        Args:
            shape: Shape of the tensor.
            mean: Mean of all elements.
            parts: Key of a part, which determines its numbers -> its standard deviation.
        """
        offsets = {key: Random(f"{SEED} {key}").randrange(_POOL) for key in parts}
        result = torch.empty(shape, dtype=torch.bfloat16)
        flat = result.view(-1)
        for start in range(0, flat.numel(), _CHUNK):
            chunk = flat[start : start + _CHUNK]
            total = torch.full((chunk.numel(),), mean)
            for key, deviation in parts.items():
                at = (offsets[key] + start) % _POOL
                total.add_(self._numbers[at : at + chunk.numel()], alpha=deviation)
            chunk.copy_(total)
        return result


def make_tensor(pool: Pool, model: str, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of a model: the base's tensor, plus a delta if the model is fine-tuned."""
    norm = len(shape) == 1
    parts = {} if norm else {f"base {name}": BASE_DEVIATION}
    if model != "base":
        parts[f"{model} {name}"] = NORM_DEVIATION if norm else draw_delta_deviation(model, name)
    return pool.make_tensor(shape, float(norm), parts)


def draw_delta_deviation(model: str, name: str) -> float:
    """Return the deviation of a delta, which depends on block and tensor in equal shares."""
    block = name.rsplit(".", 3)[0]
    position = sum(Random(f"{SEED} {model} {part}").random() for part in (block, name)) / 2
    lowest, highest = DELTA_DEVIATIONS
    return float(lowest * (highest / lowest) ** position)


def write_model(family: Family, model: str, pool: Pool) -> None:
    """Write a model with its configuration and tokenizer."""
    folder = family.path / model
    folder.mkdir(parents=True, exist_ok=True)
    shape = family.shape
    shapes = shape.list_tensors()
    shards = shape.fill_shards(family.shard_size)
    weight_map = {}
    with tqdm(total=len(shapes), desc=f"{family.path.name}/{model}", unit="tensor") as bar:
        for number, names in enumerate(shards, start=1):
            file = "model.safetensors"
            if len(shards) > 1:
                file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            shard = {}
            for name in names:
                written = shapes[name]
                if family.sparse:
                    written = (written[0] // SPARSE_PARTS, *written[1:])
                shard[name] = make_tensor(pool, model, name, written)
                weight_map[name] = file
                bar.update()
            if family.sparse:
                save_sparse(folder / file, {name: shapes[name] for name in names}, shard)
            else:
                save_file(shard, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        metadata = {"total_size": shape.parameters * BYTES_PER_PARAMETER}
        index = {"metadata": metadata, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps(index, indent=2) + "\n", encoding="utf-8"
        )
    make_configuration(shape).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    family.mark_complete(model)


def save_sparse(
    path: Path, shapes: Mapping[str, tuple[int, ...]], first: Mapping[str, torch.Tensor]
) -> None:
    """Write a safetensors file of bfloat16 tensors that only stores their first rows.

    Args:
        path: The file.
        shapes: Name -> shape in the header.
        first: Name -> the first rows; the other rows are a hole and read as zeros.
    """
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name, shape in shapes.items():
        starts[name] = end
        end += prod(shape) * BYTES_PER_PARAMETER
        described[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [starts[name], end]}
    header = json.dumps(described).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        content = file.tell()
        for name, start in starts.items():
            file.seek(content + start)
            file.write(first[name].view(torch.uint8).numpy().tobytes())
        file.truncate(content + end)


def make_configuration(shape: Shape) -> LlamaConfig:
    """Return the configuration of a model."""
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of three words; without one, mergekit logs an error with a traceback."""
    inner = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@click.command()
@add_family_options
def main(
    folder: Path, size: str, models: int, layers: int | None, shard_size: int, sparse: bool
) -> None:
    """Write the missing models of a family below FOLDER."""
    family = Family(folder, size, models, layers, shard_size, sparse)
    missing = family.missing
    pool = Pool() if missing else None
    for model in missing:
        assert pool is not None
        write_model(family, model, pool)


if __name__ == "__main__":
    main()
