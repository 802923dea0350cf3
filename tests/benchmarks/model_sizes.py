"""Llama models by size: the tensors they are made of, and how these fill shards.

Nothing here imports torch: the scripts that measure must stay small (see processes.py).
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

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape, in the order in which transformers stores them."""
        return dict(self._tensors())

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
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
        return sum(prod(shape) for shape in self.tensors().values())

    @property
    def largest_tensor(self) -> int:
        """Number of elements of the largest tensor: what a merge holds at once grows with it."""
        return max(prod(shape) for shape in self.tensors().values())

    def shards(self, shard_size: int) -> list[list[str]]:
        """The tensor names of each shard: filled one after the other, as transformers does.

        Args:
            shard_size: In bytes; a tensor that is larger has a shard of its own.
        """
        shards: list[list[str]] = [[]]
        filled = 0
        for name, shape in self.tensors().items():
            size = prod(shape) * BYTES_PER_PARAMETER
            if shards[-1] and filled + size > shard_size:
                shards.append([])
                filled = 0
            shards[-1].append(name)
            filled += size
        return shards

    def shard_size(self, shards: int) -> int:
        """The smallest shard size, in bytes, that needs no more than so many shards."""
        low, high = 0, self.parameters * BYTES_PER_PARAMETER
        while high - low > 1:
            middle = (low + high) // 2
            if len(self.shards(middle)) > shards:
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
