"""Numbers that differ from block to block or linear to linear, and mergekit's filters for them.

A filter is a part of a tensor's name, and the first match counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from dppa_mergekit.recipes.inputs import Node
from dppa_mergekit.tensor_names import Block, block_of, natural_order

Scope: TypeAlias = Block | str | None
"""Tensors that share a number: those of a block, the one of a name, or, under None, all others."""

Weight: TypeAlias = float | Mapping[Scope, float]
"""A weight or factor of a model: one number, or one for each scope."""


def value_at(weight: Weight, name: str) -> float:
    """Return the number of a tensor: that of its name, else of its block, else of all others.

    Raises:
        KeyError: The number has no scope that holds the tensor.
    """
    if isinstance(weight, (int, float)):
        return weight
    if name in weight:
        return weight[name]
    block = block_of(name)
    return weight[block if block in weight else None]


def in_order(scopes: Iterable[Scope]) -> list[Scope]:
    """Return scopes in the order of a model's layers; None comes last."""
    return sorted(set(scopes), key=_position)


def _position(scope: Scope) -> tuple[bool, tuple[tuple[int, int, str], ...]]:
    return scope is None, () if scope is None else natural_order(_text(scope))


def filters(values: Mapping[Scope, float]) -> list[Node]:
    """Return mergekit's filters for the number of each scope; its gradients would round.

    One stack's name may end with another's, and a linear's name may begin with another's. So longer
    stacks come first, and longer names within a block.
    """
    named = sorted((scope for scope in values if scope is not None), key=_precedence)
    found: list[Node] = [{"filter": _text(scope), "value": values[scope]} for scope in named]
    return [*found, {"value": values[None]}] if None in values else found


def shield(values: Mapping[Scope, float], others: Iterable[str]) -> dict[Scope, float]:
    """Return numbers with one more for each other tensor that would match a linear's filter.

    Args:
        values: Scope -> number.
        others: Names of tensors that have the number of None.
    """
    names = [scope for scope in values if isinstance(scope, str)]
    matched = [other for other in others if any(name in other for name in names)]
    return {**values, **dict.fromkeys(matched, values[None])}


def _precedence(scope: Scope) -> tuple[int, int, int, str]:
    block = block_of(scope) if isinstance(scope, str) else scope
    text = _text(scope)
    return (
        (0, 0, -len(text), text)
        if block is None
        else (
            -len(block.stack),
            block.number,
            -len(text),
            text,
        )
    )


def _text(scope: Scope) -> str:
    """Return the filter of a scope."""
    return f"{scope.stack}.{scope.number}." if isinstance(scope, Block) else scope or ""
