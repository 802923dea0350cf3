"""Gradients and filters of a recipe, and what mergekit makes of them."""

from collections.abc import Callable
from typing import Any

import oracle

LAYERS = 3


def position(name: str) -> float:
    """The t of mergekit's gradients: from 0 in the first layer to 1 in the last; 0 outside."""
    block = oracle.classify(name, ()).block
    return 0.0 if block is None else block / (LAYERS - 1)


def resolve(setting: Any, name: str) -> Any:
    """What mergekit makes of a recipe's value for one tensor."""
    if not isinstance(setting, list):
        return setting
    if isinstance(setting[0], dict):
        for condition in setting:
            if condition.get("filter", "*") in ("*", *filters_in(name)):
                return resolve(condition["value"], name)
        return None
    scaled = position(name) * (len(setting) - 1)
    first = int(scaled)
    if isinstance(setting[0], (bool, str)):
        return setting[first]
    rest = scaled - first
    return (1 - rest) * setting[first] + rest * setting[min(first + 1, len(setting) - 1)]


def filters_in(name: str) -> list[str]:
    return [part for part in ("self_attn", "mlp", "layers.1.", "norm", "embed") if part in name]


def by_name(setting: Any) -> Callable[[str], Any]:
    return lambda name: resolve(setting, name)


FORMS: dict[str, Callable[[Any, Any, Any], list[Any]]] = {
    "gradient": lambda low, middle, high: [low, middle, high],
    "two ends": lambda low, middle, high: [high, low],
    "filters": lambda low, middle, high: [
        {"filter": "self_attn", "value": low},
        {"filter": "layers.1.", "value": middle},
        {"value": high},
    ],
    "gradient in a filter": lambda low, middle, high: [
        {"filter": "mlp", "value": [high, low]},
        {"filter": "embed", "value": low},
        {"filter": "*", "value": middle},
    ],
    "no filter holds": lambda low, middle, high: [
        {"filter": "self_attn", "value": low},
        {"filter": "mlp", "value": high},
    ],
}
