"""The parameters of one tensor, resolved once into a frozen record."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from dppa_mergekit.allocation.allocations import Allocation
from dppa_mergekit.combination.contribution import Combination
from dppa_mergekit.errors import ParameterError
from dppa_mergekit.merging.method import Method
from dppa_mergekit.parameters import (
    ACTIVATIONS,
    AMPLIFICATIONS,
    AMPLIFY_DENSE,
    DENSITY,
    RATES,
    REQUIRED,
    WEIGHT,
)
from dppa_mergekit.sparsification.selections import Selection


@dataclass(frozen=True)
class ModelParameters:
    """The parameters of one fine-tuned model for one tensor.

    Attributes:
        weight: Weight of the model.
        density: Target density, from 0 to 1.
        factors: Rate -> factor of its partition; empty for a method without amplification.
        dense_factor: Factor of the delta if the tensor is dense.
        activations: File of the second moments of the model's inputs; None for none.
    """

    weight: float
    density: float
    factors: Mapping[int, float]
    dense_factor: float
    activations: str | None = None


@dataclass(frozen=True)
class TensorParameters:
    """The parameters of one tensor.

    Attributes:
        allocation: How many elements of every linear are kept.
        selection: Which elements are kept.
        combination: How the deltas become one.
        models: Fine-tuned model -> its parameters.
    """

    allocation: Allocation
    selection: Selection
    combination: Combination
    models: Mapping[Hashable, ModelParameters]


def resolve_parameters(
    method: Method,
    shared: Mapping[str, object],
    per_model: Mapping[Hashable, Mapping[str, object]],
) -> TensorParameters:
    """The record of one tensor.

    Args:
        method: The merge method.
        shared: Shared parameter -> value.
        per_model: Fine-tuned model -> parameter -> value.

    Raises:
        ParameterError: A value is missing or not allowed.
    """
    return TensorParameters(
        method.allocation.resolve(shared),
        method.selection.resolve(shared),
        method.combination.resolve(shared),
        {model: _of_model(method, model, values) for model, values in per_model.items()},
    )


def _of_model(method: Method, model: Hashable, values: Mapping[str, object]) -> ModelParameters:
    if values[WEIGHT.name] is REQUIRED:
        raise ParameterError(
            f"{WEIGHT.name} is missing for {model}: every fine-tuned model needs one."
        )
    factors = {}
    if method.amplified:
        factors = {
            rate: amplify.of(values) for rate, amplify in zip(RATES, AMPLIFICATIONS, strict=True)
        }
    return ModelParameters(
        method.combination.weight.of(values),
        DENSITY.of(values),
        factors,
        AMPLIFY_DENSE.of(values) if method.amplified else 1.0,
        ACTIVATIONS.of(values) if ACTIVATIONS in method.parameters else None,
    )
