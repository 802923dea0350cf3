"""Ways to merge the two experts on antigen receptors, and the choice of their numbers on dev.

Every row is a method with a density. First one weight (or, of a combination by inputs, one lambda)
is chosen for both experts, from as many candidates in every row; then a row may go on to one weight
for each expert, and `dppa` to a factor of all partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from mergekit.merge_methods import merge_state_dicts

from dppa_mergekit import method_table

Weights: TypeAlias = dict[str, torch.Tensor]

EXPERTS = ("tcr", "shark")

SHARED = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
"""Candidates for the number that both experts share: a weight or a lambda."""

STEPS = (0.5, 1.5)
"""Candidates for the weight of each expert in turn, in multiples of the shared one."""

FACTORS = (1.5, 2.0, 2.5)
"""Candidates for the factor of all partitions, besides 1."""

RANDOM = ("dare_linear", "dare_ties", "della", "dare_dpa", "dare_regmean")
RATES = (90, 80, 70, 60, 50, 40, 30, 20, 10, 0)


@dataclass(frozen=True)
class Row:
    """A way to merge.

    Attributes:
        method: The merge method.
        density: Density of both deltas; None if the method has none.
        amplified: Whether a factor is chosen, too.
    """

    method: str
    density: float | None = None
    amplified: bool = False

    @property
    def label(self) -> str:
        """The name of the row, without its density."""
        return f"{self.method}{', factor searched' * self.amplified}"

    @property
    def key(self) -> str:
        """A name that no other row has."""
        return f"{self.label}, density {self.density or 1:g}"


@dataclass(frozen=True)
class Settings:
    """The numbers of a merge.

    Attributes:
        weights: A weight for each expert.
        factor: The factor of all partitions.
        scale: Lambda of a combination by inputs.
    """

    weights: tuple[float, ...]
    factor: float = 1.0
    scale: float = 1.0


def rows(densities: Sequence[float]) -> list[Row]:
    """Return every row of the first table."""
    methods = ("dp", "ties", *RANDOM[:4], "dppa_regmean", "dare_regmean")
    return [
        Row("task_arithmetic"),
        *(
            row
            for density in densities
            for row in (
                Row("dppa", density, amplified=True),
                *(Row(method, density) for method in methods),
            )
        ),
    ]


def parameters(row: Row, settings: Settings, seed: int) -> dict[str, object]:
    """Return a merge's parameters, as `merge_state_dicts` takes them."""
    found: dict[str, object] = {"weight": dict(zip(EXPERTS, settings.weights, strict=True))}
    if row.density is not None:
        found["density"] = dict.fromkeys(EXPERTS, row.density)
    if row.amplified:
        found |= {f"amplify_{rate}": settings.factor for rate in RATES if _kept(row, rate)}
    if method_table.is_by_inputs(row.method):
        found["lambda"] = settings.scale
    if row.method in ("dare_dpa", "dare_regmean"):
        found["seed"] = seed
    if row.method == "della":
        found["epsilon"] = 0.5 * (row.density or 1)  # must be below the density
    if row.method in ("ties", "della"):
        found["normalize"] = False  # a common weight would change nothing
    return found


def merge(models: Mapping[str, Weights], row: Row, settings: Settings, seed: int) -> Weights:
    """Merge the experts.

    Args:
        models: `base` and the experts, name -> tensors, with the same names and shapes.
        row: The way to merge.
        settings: Its numbers.
        seed: The seed of a random method.
    """
    torch.manual_seed(seed)
    merged: Weights = merge_state_dicts(
        dict(models), row.method, parameters=parameters(row, settings, seed), base="base"
    )
    return merged


def choose(row: Row, score: Callable[[Settings], float]) -> tuple[Settings, int]:
    """Return the best settings with a number that both experts share, and how many were tried.

    Args:
        row: The way to merge.
        score: Returns how good settings are; more is better, and of equals the first counts.
    """
    by_inputs = method_table.is_by_inputs(row.method)
    candidates = [
        Settings((1.0, 1.0), scale=value) if by_inputs else Settings((value, value))
        for value in SHARED
    ]
    best = max(candidates, key=score)
    if not row.amplified:
        return best, len(candidates)
    others = [replace(best, factor=factor) for factor in FACTORS]
    return max([best, *others], key=score), len(candidates) + len(others)


def refine(settings: Settings, score: Callable[[Settings], float]) -> tuple[Settings, int]:
    """Return the best settings with a weight for each expert, and how many more were tried."""
    best = settings
    for place, weight in enumerate(settings.weights):
        others = [
            replace(
                best,
                weights=(*best.weights[:place], step * weight, *best.weights[place + 1 :]),
            )
            for step in STEPS
        ]
        best = max([best, *others], key=score)
    return best, len(STEPS) * len(settings.weights)


def changed_share(base: Weights, merged: Weights) -> float:
    """Return the percentage of elements in which a merge differs from its base."""
    changed = sum(int((merged[name] != tensor).sum()) for name, tensor in base.items())
    return 100 * changed / sum(tensor.numel() for tensor in base.values())


def _kept(row: Row, rate: int) -> bool:
    return row.density is not None and rate >= 100 * (1 - row.density) - 1e-6
