"""How much of their trace the moments hold, and how far the inputs of models overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean

import torch

from dppa_mergekit.moments.activations_file import ActivationsFile
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.tensor_names import Linear, block_of, kind_of

LEADING = 16
"""Directions of the subspaces that are compared."""


@dataclass(frozen=True)
class InputsOfModels:
    """The inputs of one linear in all models that reached it.

    Attributes:
        linear: The first of the linears that share them.
        kind: The name of its module, without the block.
        block: The number of its block; None outside all blocks.
        held: Model -> the share of the trace that the low rank holds, from 0 to 1.
        angles: Two models -> the mean principal angle between their leading subspaces, in degrees:
            0 if both have the same leading inputs, 90 if these are orthogonal.
    """

    linear: Linear
    kind: str
    block: int | None
    held: Mapping[str, float]
    angles: Mapping[tuple[str, str], float]


def compare_inputs(files: Mapping[str, ActivationsFile]) -> list[InputsOfModels]:
    """Compare the moments of models, linear by linear.

    Args:
        files: Model -> its file.
    """
    firsts = {
        Linear(inputs.linears[0].tensor, inputs.linears[0].expert): None
        for file in files.values()
        for inputs in file.observation.inputs
    }
    return [_compare(linear, files) for linear in firsts]


def _compare(linear: Linear, files: Mapping[str, ActivationsFile]) -> InputsOfModels:
    moments = {
        model: moment
        for model, file in files.items()
        if (moment := file.moment(linear)) is not None
    }
    bases = {model: _leading(moment) for model, moment in moments.items()}
    block = block_of(linear.tensor)
    return InputsOfModels(
        linear,
        kind_of(linear.tensor),
        None if block is None else block.number,
        {model: _held(moment) for model, moment in moments.items()},
        {
            (one, other): _mean_angle(bases[one], bases[other])
            for one, other in combinations(bases, 2)
        },
    )


def _held(moment: SecondMoment) -> float:
    """Return the share of the trace in the low rank."""
    low_rank = float(moment.vectors.double().square().sum(0).dot(moment.values.double()))
    whole = low_rank + float(moment.rest.double().sum())
    return low_rank / whole if whole > 0 else 1.0


def _leading(moment: SecondMoment) -> torch.Tensor:
    """Return (inputs, directions) orthonormal leading directions."""
    order = moment.values.argsort(descending=True)[:LEADING]
    basis: torch.Tensor = torch.linalg.qr(moment.vectors[:, order].double())[0]
    return basis


def _mean_angle(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the mean principal angle between two subspaces, in degrees."""
    cosines = torch.linalg.svdvals(one.t() @ other).clamp(max=1)
    return math.degrees(float(cosines.acos().mean()))


def by_kind(found: Sequence[InputsOfModels]) -> dict[str, list[InputsOfModels]]:
    """Kind -> the inputs of its linears, in order; experts of one kind together."""
    kinds: dict[str, list[InputsOfModels]] = {}
    for inputs in found:
        kinds.setdefault(inputs.kind, []).append(inputs)
    return kinds


def mean_held(found: Sequence[InputsOfModels]) -> float:
    """Return the mean share of the trace that is held."""
    return mean(share for inputs in found for share in inputs.held.values())


def mean_angle(found: Sequence[InputsOfModels]) -> float | None:
    """Return the mean angle in degrees; None where no two models reached the linears."""
    angles = [angle for inputs in found for angle in inputs.angles.values()]
    return mean(angles) if angles else None
