"""Tensor names: the block that a tensor belongs to, and whether the tensor is pruned.

A name is cut at its first all-digit component: ``model.layers.3.mlp.up_proj.weight`` is in stack
``model.layers``, block 3. A linear is a 2-D floating-point ``.weight`` inside a block, or one of
the projections that ``torch.nn.MultiheadAttention`` keeps itself; a 3-D tensor of stacked experts
holds one linear for each expert. All other tensors are dense: never pruned.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ROUTING = {
    # Mixtral, Qwen2-MoE, DeepSeek, OLMoE, Jamba: one score for each expert.
    "gate": re.compile(r"gate|gating"),
    # Switch, NLLB-MoE, DBRX, Llama 4, gpt-oss; the modality_router of Gemma 3n's streams, the
    # router_gate of Doge, the router_mlp of Zaya.
    "router": re.compile(r"(\w+_)?router(_\w+)?"),
    # Qwen2-MoE and Qwen3-Next: one number for the expert that all tokens share.
    "expert gate": re.compile(r"(\w+_)?(experts?|moe)_gate"),
    # Gemma 3n's AltUp: coefficients by which four streams of states mix, four or sixteen a state.
    "mixing coefficients": re.compile(r"(correction|prediction)_coefs"),
}
"""Whole name components of routers, scalar gates and mixing coefficients, by kind. They are few
numbers, and pruning them would send tokens elsewhere. A gate_proj, an output_gate or a
per_layer_input_gate is a linear like others."""

VOCABULARY = frozenset({"lm_head", "lm_heads", "shared_head"})
"""Name components of output heads that some models keep inside a block."""

PROJECTIONS = frozenset({"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"})
"""The weights of `torch.nn.MultiheadAttention` that belong to no module of their own."""

TABLES = {"embed": "embedding", "norm": "norm", "bias": "bias"}
"""Parts of the name components of embeddings, norms, and tables of positions or relative biases."""


BUFFER = re.compile(
    r"(^|\.)("
    r"inv_freq|original_inv_freq|position_ids|masked_bias|num_batches_tracked"
    r"|rotary_emb\.(cos|sin)_cached|(attn|attention)\.bias|causal_mask|token_type_ids"
    r")$"
)
"""Matches buffers that every release of transformers computes anew, whatever is stored. The bias of
a module `attn` itself is the causal mask of GPT-2 and its kin."""


@dataclass(frozen=True, order=True)
class Block:
    """A block of a model: the stack that it belongs to, and its number there."""

    stack: str
    number: int


@dataclass(frozen=True, order=True)
class Linear:
    """A linear: the tensor that holds it, and the expert's number where it stacks experts.

    Example:
        >>> from dppa_mergekit import Linear
        >>> Linear("model.layers.0.mlp.up_proj.weight")
        Linear(tensor='model.layers.0.mlp.up_proj.weight', expert=0)
    """

    tensor: str
    expert: int = 0


def block_of(name: str) -> Block | None:
    """Return the block that a tensor belongs to; None outside all blocks."""
    components = name.split(".")
    for position, component in enumerate(components):
        if component.isdecimal() and component.isascii():
            return Block(".".join(components[:position]), int(component))
    return None


def kind_of(name: str) -> str:
    """Return a tensor's name within its block, or its whole name outside all, without `.weight`."""
    block = block_of(name)
    components = name.split(".")
    if block is not None:
        components = components[block.stack.count(".") + 2 if block.stack else 1 :]
    return ".".join(components).removesuffix(".weight")


def linears_in(name: str, shape: Sequence[int], vocabulary: bool = False) -> int:
    """Return the number of linears in a tensor: 0 if it is dense, 1, or the number of its experts.

    Args:
        name: The name of a floating-point tensor.
        shape: The shape of the tensor.
        vocabulary: Whether one of its axes is indexed by tokens.
    """
    if dense_because(name, shape, vocabulary) is not None:
        return 0
    return _linears_by_shape(_components(name), shape)


def dense_because(name: str, shape: Sequence[int], vocabulary: bool = False) -> str | None:
    """Return why a tensor is dense, in a few words; None if it holds linears.

    The arguments are those of `linears_in`.
    """
    if vocabulary:
        return "has an axis of tokens"
    if block_of(name) is None:
        return "outside all blocks"
    if 0 in shape:
        return "empty"
    components = _components(name)
    because = _dense_by_name(components)
    if because is None and not _linears_by_shape(components, shape):
        return "no matrix" if len(shape) != 2 else "no weight"
    return because


def is_buffer(name: str) -> bool:
    """Return whether a tensor is computed anew when its model is loaded, by its name."""
    return BUFFER.search(name) is not None


def is_output_head(name: str) -> bool:
    """Return whether a tensor maps states to tokens, by its name."""
    components = _components(name)
    return components[-1] == "weight" and any(part in VOCABULARY for part in components)


def names_with_inputs_first(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Return the tensors that store their linears as (inputs, outputs), as far as shapes show it.

    A bias has as many elements as its linear has outputs. Of stacked experts, what leaves
    gate_up_proj, twice what enters down_proj, shows it, too. A linear of which nothing shows it,
    such as a square one, is stored as the others of its model are, GPT-2's as (inputs, outputs).

    Args:
        shapes: Name -> shape, of all tensors of the model.
    """
    shown = {name: _shown_order(name, shapes) for name in shapes}
    flat = {name for name, shape in shapes.items() if len(shape) == 2 and linears_in(name, shape)}
    others = any(shown[name] for name in flat)
    return {
        name
        for name, order in shown.items()
        if order or (order is None and others and name in flat)
    }


def _shown_order(name: str, shapes: Mapping[str, Sequence[int]]) -> bool | None:
    """Return whether a tensor's own bias or sibling shows (inputs, outputs); None for neither."""
    shape = tuple(shapes.get(name, ()))
    if len(shape) < 2 or shape[-2] == shape[-1] or not linears_in(name, shape):
        return None
    stem = name.removesuffix(".weight")
    for bias in (shapes.get(f"{stem}.bias"), shapes.get(f"{stem}_bias")):
        if bias is not None and bias[-1] in shape[-2:]:
            return bias[-1] == shape[-1]
    if len(shape) == 3:
        prefix = stem.removesuffix("gate_up_proj").removesuffix("down_proj")
        joint, down = (shapes.get(f"{prefix}{part}") for part in ("gate_up_proj", "down_proj"))
        if joint is not None and down is not None:
            return joint[-1] == 2 * down[-2] and joint[-2] == down[-1]
    return None


def linears_alone(name: str | None, shape: Sequence[int], vocabulary: bool = False) -> int:
    """Return the number of linears in a tensor that comes without its model, as in Python code.

    It need not be in a block. Only its shape, and its name where it has one, can make it dense.
    """
    if vocabulary or 0 in shape or len(shape) < 2:
        return 0
    if name is None:
        return 1
    if _dense_by_name(_components(name)) is not None:
        return 0
    return max(1, linears_in(name, shape))


def _components(name: str) -> list[str]:
    return [component.lower() for component in name.split(".")]


def _dense_by_name(components: list[str]) -> str | None:
    if any(kind.fullmatch(part) for part in components for kind in ROUTING.values()):
        return "router or gate"
    if any(component in VOCABULARY for component in components):
        return "output head"
    # Of the parents only the nearest counts: a linear may be in a module called conv or norm. The
    # last component counts as well: an expert's bias may be 2-D and called gate_up_proj_bias.
    nearest = _last_two(components)
    return next(
        (kind for part, kind in TABLES.items() if any(part in component for component in nearest)),
        None,
    )


def _linears_by_shape(components: list[str], shape: Sequence[int]) -> int:
    is_weight = components[-1] == "weight"
    if len(shape) == 2:
        return int(is_weight or components[-1] in PROJECTIONS)
    if len(shape) == 3:
        convolution = any("conv" in component for component in _last_two(components))
        if "experts" in components or (is_weight and not convolution):
            return shape[0]
    return 0


def _last_two(components: list[str]) -> list[str]:
    """Return the names of the tensor's module and of the tensor in it, without list numbers."""
    return [component for component in components if not component.isdecimal()][-2:]


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sorting key that puts layers.2 before layers.10."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    )
