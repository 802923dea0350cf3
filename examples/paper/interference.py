"""How far the models of a merge disturb each other, before anything is merged.

In:  the base, fine-tuned models, and the activations files of these.
Out: for every two models, the angle between their inputs, and the cross-talk: how much a delta does
     on the inputs of the other model, relative to what that model's own delta does there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from statistics import mean

import torch
from safetensors.torch import load_file

from dppa_mergekit.moments.activations_file import ActivationsFile
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.observation.overlap import compare_inputs, mean_angle
from dppa_mergekit.tensor_names import Linear


@dataclass(frozen=True)
class Interference:
    """How far the models of a merge disturb each other.

    Attributes:
        angle: The mean principal angle between the leading inputs of two models, in degrees; 0
            where they are the same.
        crosstalk: The mean, over linears and ordered pairs of models, of what the delta of the one
            does on the inputs of the other, relative to what the other's own delta does; 0 where
            the merge is free of interference.
    """

    angle: float
    crosstalk: float


def measure_interference(
    base: Path, models: Mapping[str, Path], files: Mapping[str, str]
) -> Interference:
    """Compare all models.

    Args:
        base: The folder of the base model, with one safetensors file.
        models: Name -> folder of a fine-tuned model, with one safetensors file.
        files: Name -> its activations file.
    """
    opened = {name: ActivationsFile.open(files[name]) for name in models}
    angle = mean_angle(compare_inputs(opened))
    assert angle is not None
    origin = load_file(base / "model.safetensors")
    tuned = {name: load_file(folder / "model.safetensors") for name, folder in models.items()}
    ratios = []
    for inputs in next(iter(opened.values())).observation.inputs:
        for linear in inputs.linears:
            assert not linear.inputs_first
            key = linear.tensor
            deltas = {name: tensors[key].double() - origin[key] for name, tensors in tuned.items()}
            for one, other in permutations(models, 2):
                moment = opened[other].moment(Linear(key, linear.expert))
                assert moment is not None
                own = measure_effect(deltas[other], moment)
                if own > 0:
                    ratios.append((measure_effect(deltas[one], moment) / own) ** 0.5)
    return Interference(angle, mean(ratios))


def measure_effect(delta: torch.Tensor, moment: SecondMoment) -> float:
    """Return the mean square length of what a delta adds to the outputs of a linear.

    That is tr(D G D^T), with G = V diag(e) V^T + diag(q).

    Args:
        delta: D, (outputs, inputs).
        moment: G, the second moments of the inputs.
    """
    vectors, values, rest = (part.double() for part in (moment.vectors, moment.values, moment.rest))
    low_rank = (delta @ vectors).square().sum(0).dot(values)
    return float(low_rank + delta.square().sum(0).dot(rest))
