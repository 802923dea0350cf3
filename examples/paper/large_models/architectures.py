"""The architectures of the large models: their configuration, and the shape of every tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")
GEMMA_2_NORMS = (*LLAMA_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class Architecture:
    """A decoder with gated MLPs and grouped keys and values.

    Attributes:
        class_name: Its class in transformers.
        model_type: Its name in transformers and mergekit.
        layers: Number of blocks.
        hidden: Width between blocks.
        intermediate: Width within an MLP.
        heads: Number of heads.
        key_value_heads: Number of heads of keys and values.
        head_width: Width of a head.
        vocabulary: Rows of the embedding.
        context: The largest number of tokens of a text.
        tied: Whether the output head is the embedding; checkpoints then hold no head.
        norms: Names of the norms of a block.
        settings: The other entries of its configuration.
    """

    class_name: str
    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    context: int
    tied: bool
    norms: tuple[str, ...] = LLAMA_NORMS
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def attention(self) -> int:
        """Width of all heads together, which enters the attention's output projection."""
        return self.heads * self.head_width

    def configuration(self, rows: int) -> dict[str, object]:
        """Return the content of `config.json`, but for the dtype.

        Args:
            rows: Rows of the embedding.
        """
        return {
            "architectures": [self.class_name],
            "model_type": self.model_type,
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_width,
            "vocab_size": rows,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": self.tied,
            **self.settings,
        }

    def shapes(self, rows: int | None = None) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every tensor of a checkpoint.

        Args:
            rows: Rows of the embedding; the vocabulary where None.
        """
        rows = self.vocabulary if rows is None else rows
        key_value = self.key_value_heads * self.head_width
        linears = {
            "self_attn.q_proj": (self.attention, self.hidden),
            "self_attn.k_proj": (key_value, self.hidden),
            "self_attn.v_proj": (key_value, self.hidden),
            "self_attn.o_proj": (self.hidden, self.attention),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, self.hidden)}
        for layer in range(self.layers):
            block = f"model.layers.{layer}"
            found |= {f"{block}.{name}.weight": shape for name, shape in linears.items()}
            found |= {f"{block}.{name}.weight": (self.hidden,) for name in self.norms}
        found["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            found["lm_head.weight"] = (rows, self.hidden)
        return found

    def parameters(self, rows: int | None = None) -> int:
        """Return the number of parameters of a checkpoint; see `shapes`."""
        return sum(math.prod(shape) for shape in self.shapes(rows).values())

    def block_inputs(self) -> tuple[int, ...]:
        """Return the widths of what enters the linears of a block.

        Q, K and V share their inputs, and so do gate and up.
        """
        return (self.hidden, self.attention, self.hidden, self.intermediate)

    def input_widths(self) -> tuple[int, ...]:
        """Return the width of every input of linears; a head is a linear unless it is tied."""
        return self.layers * self.block_inputs() + (() if self.tied else (self.hidden,))

    def token_bytes(self, element_bytes: int) -> int:
        """Return the bytes of the keys and values of a token in all layers."""
        return 2 * self.layers * self.key_value_heads * self.head_width * element_bytes


LLAMA_2_7B = Architecture(
    class_name="LlamaForCausalLM",
    model_type="llama",
    layers=32,
    hidden=4096,
    intermediate=11008,
    heads=32,
    key_value_heads=32,
    head_width=128,
    vocabulary=32000,
    context=4096,
    tied=False,
    settings={"rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2},
)

LLAMA_3_SETTINGS = {
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
"""The scaling of positions differs between the sizes; no weight depends on it."""

LLAMA_3_2_3B = Architecture(
    class_name="LlamaForCausalLM",
    model_type="llama",
    layers=28,
    hidden=3072,
    intermediate=8192,
    heads=24,
    key_value_heads=8,
    head_width=128,
    vocabulary=128256,
    context=131072,
    tied=True,
    settings=LLAMA_3_SETTINGS,
)

LLAMA_3_1_8B = replace(
    LLAMA_3_2_3B, layers=32, hidden=4096, intermediate=14336, heads=32, tied=False
)

GEMMA_2_SETTINGS = {
    "rms_norm_eps": 1e-6,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}

GEMMA_2_2B = Architecture(
    class_name="Gemma2ForCausalLM",
    model_type="gemma2",
    layers=26,
    hidden=2304,
    intermediate=9216,
    heads=8,
    key_value_heads=4,
    head_width=256,
    vocabulary=256000,
    context=8192,
    tied=True,
    norms=GEMMA_2_NORMS,
    settings=GEMMA_2_SETTINGS,
)

GEMMA_2_9B = replace(
    GEMMA_2_2B, layers=42, hidden=3584, intermediate=14336, heads=16, key_value_heads=8
)
