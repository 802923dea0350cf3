"""Tensor names: where a tensor stands in a model, and whether it is pruned.

A name is cut at its first all-digit component: ``model.layers.3.mlp.up_proj.weight`` is in stack
``model.layers``, block 3. A linear is a 2-D floating-point ``.weight`` inside a block; stacked
experts (3-D) are one linear an expert. All else is dense: never pruned.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

ROUTING = frozenset({"gate", "router", "shared_expert_gate"})
"""Components of routers and scalar gates: pruning one would change the routing."""

VOCABULARY = frozenset({"lm_head", "lm_heads", "shared_head"})
"""Components of output heads that some models keep inside a block."""

TABLES = {"embed": "embedding", "norm": "norm", "bias": "bias"}
"""Parts of components of embeddings, norms, and position or relative-bias tables."""


@dataclass(frozen=True, order=True)
class Block:
    """A block of a model: the stack that it stands in, and its number there."""

    stack: str
    number: int


@dataclass(frozen=True, order=True)
class Linear:
    """A linear: the tensor that holds it, and the expert's number where the tensor stacks many."""

    tensor: str
    expert: int = 0


def block_of(name: str) -> Block | None:
    """The block that a tensor belongs to; None outside all blocks."""
    components = name.split(".")
    for position, component in enumerate(components):
        if component.isdecimal() and component.isascii():
            return Block(".".join(components[:position]), int(component))
    return None


def linears_in(name: str, shape: Sequence[int], vocabulary: bool = False) -> int:
    """How many linears a tensor holds: 0 for a dense one, 1, or the number of stacked experts.

    Args:
        name: The name of a floating-point tensor.
        shape: Its shape.
        vocabulary: Whether one of its axes is indexed by tokens.
    """
    if dense_because(name, shape, vocabulary) is not None:
        return 0
    return _linears_by_shape(_components(name), shape)


def dense_because(name: str, shape: Sequence[int], vocabulary: bool = False) -> str | None:
    """Why a tensor is dense, in a few words; None if it holds linears. Arguments as above."""
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


def linears_alone(name: str | None, shape: Sequence[int], vocabulary: bool = False) -> int:
    """As `linears_in`, for a tensor that comes without its model: only its own name may say no."""
    if vocabulary or 0 in shape or len(shape) == 0:
        return 0
    if name is None:
        return 1
    if _dense_by_name(_components(name)) is not None:
        return 0
    return max(1, linears_in(name, shape))


def _components(name: str) -> list[str]:
    return [component.lower() for component in name.split(".")]


def _dense_by_name(components: list[str]) -> str | None:
    # Of the parents only the nearest counts: a linear may stand in a module called conv or norm.
    # The last component counts as well: an expert's bias may be 2-D and called gate_up_proj_bias.
    if any(each in ROUTING for each in components):
        return "router or gate"
    if any(each in VOCABULARY for each in components):
        return "output head"
    owner = _owner(components)
    return next(
        (kind for part, kind in TABLES.items() if any(part in each for each in owner)), None
    )


def _linears_by_shape(components: list[str], shape: Sequence[int]) -> int:
    is_weight = components[-1] == "weight"
    if len(shape) == 2:
        return int(is_weight)
    if len(shape) == 3:
        convolution = any("conv" in owner for owner in _owner(components))
        if "experts" in components or (is_weight and not convolution):
            return shape[0]
    return 0


def _owner(components: list[str]) -> list[str]:
    """The tensor's own name and that of the module it belongs to; a list's numbers do not count."""
    return [each for each in components if not each.isdecimal()][-2:]


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """A sorting key that puts layers.2 before layers.10."""
    return tuple(
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    )
