"""The combinations that methods use, each with its recipe parameters.

The table of methods imports this module, and checks import the table, so torch is imported only
once parameters are resolved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from dppa_mergekit.parameters import (
    ACTIVATIONS,
    AMPLIFY,
    LAMBDA,
    MOMENT_RIDGE,
    MOMENT_SHRINKAGE,
    WEIGHT,
    WEIGHT_IN_REGRESSION,
    Parameter,
    normalize,
)

Coefficient: TypeAlias = Literal["weight", "factor"] | None
"""The numbers of a merge in which it has derivatives."""

if TYPE_CHECKING:
    from dppa_mergekit.combination.by_inputs import ByInputs
    from dppa_mergekit.combination.ties import TiesConsensus
    from dppa_mergekit.combination.weighted_sum import WeightedSum


class WeightedSumRule:
    """The row entry of `WeightedSum`."""

    normalized = normalize(default=False)
    weight = WEIGHT
    parameters: tuple[Parameter, ...] = (LAMBDA, normalized)
    coefficient: Coefficient = "weight"

    def resolve(self, shared: Mapping[str, object]) -> WeightedSum:
        """The combination under a tensor's shared parameters."""
        from dppa_mergekit.combination.weighted_sum import WeightedSum

        return WeightedSum(self.normalized.of(shared), LAMBDA.of(shared))


class TiesRule:
    """The row entry of `TiesConsensus`, which normalizes unless a recipe says otherwise."""

    normalized = normalize(default=True)
    weight = WEIGHT
    parameters: tuple[Parameter, ...] = (LAMBDA, normalized)
    coefficient: Coefficient = None

    def resolve(self, shared: Mapping[str, object]) -> TiesConsensus:
        """The combination under a tensor's shared parameters."""
        from dppa_mergekit.combination.ties import TiesConsensus

        return TiesConsensus(self.normalized.of(shared), LAMBDA.of(shared))


class ByInputsRule:
    """The row entry of `ByInputs`, which weighs models alike unless a recipe says otherwise."""

    normalized = normalize(default=True)
    weight = WEIGHT_IN_REGRESSION
    parameters: tuple[Parameter, ...] = (
        ACTIVATIONS,
        AMPLIFY,
        LAMBDA,
        normalized,
        MOMENT_SHRINKAGE,
        MOMENT_RIDGE,
    )
    coefficient: Coefficient = "factor"

    def resolve(self, shared: Mapping[str, object]) -> ByInputs:
        """The combination under a tensor's shared parameters."""
        from dppa_mergekit.combination.by_inputs import ByInputs

        return ByInputs(
            MOMENT_SHRINKAGE.of(shared),
            MOMENT_RIDGE.of(shared),
            self.normalized.of(shared),
            LAMBDA.of(shared),
            AMPLIFY.of(shared) == "auto",
        )


WEIGHTED_SUM = WeightedSumRule()
TIES = TiesRule()
BY_INPUTS = ByInputsRule()
