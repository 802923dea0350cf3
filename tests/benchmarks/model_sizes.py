"""Llama models by size: their tensors, and how tensors fill shards.

This module does not import torch: the scripts that measure must stay small (see processes.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

BYTES_PER_PARAMETER = 2  # bfloat16


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama with as many key-value heads as heads and its own `lm_head`."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int

    def list_tensors(self) -> dict[str, tuple[int, ...]]:
        """Return tensor name -> shape, in the order in which transformers stores them."""
        return dict(self._yield_tensors())

    def _yield_tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            block = f"model.layers.{layer}"
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                yield f"{block}.self_attn.{name}.weight", (self.hidden, self.hidden)
            yield f"{block}.mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield f"{block}.mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield f"{block}.mlp.down_proj.weight", (self.hidden, self.intermediate)
            yield f"{block}.input_layernorm.weight", (self.hidden,)
            yield f"{block}.post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(prod(shape) for shape in self.list_tensors().values())

    @property
    def largest_tensor(self) -> int:
        """Number of elements of the largest tensor, with which the memory of a merge grows."""
        return max(prod(shape) for shape in self.list_tensors().values())

    def fill_shards(self, shard_size: int) -> list[list[str]]:
        """Return the tensor names of each shard; shards fill one by one, as in transformers.

        Args:
            shard_size: Bytes of a shard; a larger tensor has a shard of its own.
        """
        shards: list[list[str]] = [[]]
        filled = 0
        for name, shape in self.list_tensors().items():
            size = prod(shape) * BYTES_PER_PARAMETER
            if shards[-1] and filled + size > shard_size:
                shards.append([])
                filled = 0
            shards[-1].append(name)
            filled += size
        return shards

    def find_shard_size(self, shards: int) -> int:
        """Return the smallest shard size, in bytes, that needs at most so many shards."""
        low, high = 0, self.parameters * BYTES_PER_PARAMETER
        while high - low > 1:
            middle = (low + high) // 2
            if len(self.fill_shards(middle)) > shards:
                low = middle
            else:
                high = middle
        return high


SIZES = {
    "tiny": Shape(layers=2, hidden=64, intermediate=176, vocabulary=256, heads=1),
    "0.2B": Shape(layers=16, hidden=1024, intermediate=2816, vocabulary=8192, heads=16),
    "1.0B": Shape(layers=22, hidden=2048, intermediate=5632, vocabulary=8192, heads=32),
    "3B": Shape(layers=24, hidden=3200, intermediate=8640, vocabulary=8192, heads=25),
    # The dimensions of LLaMA-2-7B.
    "7B": Shape(layers=32, hidden=4096, intermediate=11008, vocabulary=32000, heads=32),
}
