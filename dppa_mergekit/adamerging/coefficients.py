"""The coefficients that AdaMerging learns: a number for each model and block of a live merge.

In a weighted sum they are the weights. A merge by inputs is linear in the factors of its deltas,
and not in its weights: there they are factors for all partitions of a model in a block, which
multiply those of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Protocol

from dppa_mergekit import method_table
from dppa_mergekit.parameters import AMPLIFICATION_NAMES

if TYPE_CHECKING:
    import torch

    from dppa_mergekit.live.weighted_merge import ByBlock, WeightedMerge
    from dppa_mergekit.recipes.recipe import Recipe, Weight
    from dppa_mergekit.tensor_names import Block


class Coefficients(Protocol):
    """What is learned of a live merge."""

    @property
    def word(self) -> str:
        """What one of them is called: weight, factor."""
        ...

    @property
    def largest(self) -> float:
        """Their largest value; the smallest is 0."""
        ...

    @property
    def blocks(self) -> Sequence[Block | None]:
        """The blocks that have coefficients; None for the tensors outside all blocks."""
        ...

    def start(self) -> ByBlock:
        """Return the coefficients of the recipe."""
        ...

    def set(self, values: Mapping[str, Weight]) -> None:
        """Write the merge with coefficients.

        Args:
            values: Fine-tuned model, as the recipe spells it -> its coefficient.
        """
        ...

    def gradients(self, values: Mapping[str, Weight]) -> AbstractContextManager[torch.Tensor]:
        """Collect the gradient of the coefficients from backward passes through the live model.

        Args:
            values: The coefficients as they were set.

        Returns:
            A context whose value is (models, blocks) float64 zeros, to which every backward pass
            in the context adds the derivatives of its loss.
        """
        ...

    def recipe(self, values: Mapping[str, Weight]) -> Recipe:
        """Return the recipe of the merge with coefficients."""
        ...


@dataclass(frozen=True)
class LearnedWeights:
    """The weights of a weighted sum.

    Attributes:
        merge: The live merge.
    """

    merge: WeightedMerge
    word = "weight"
    largest = 1.0

    @property
    def blocks(self) -> Sequence[Block | None]:
        """All blocks."""
        return self.merge.blocks

    def start(self) -> ByBlock:
        """Return the recipe's weights."""
        return self.merge.weights()

    def set(self, values: Mapping[str, Weight]) -> None:
        """Write the merge with weights."""
        self.merge.set_weights(values)

    def gradients(self, values: Mapping[str, Weight]) -> AbstractContextManager[torch.Tensor]:
        """Collect the gradient of the weights."""
        return self.merge.weight_gradients(values)

    def recipe(self, values: Mapping[str, Weight]) -> Recipe:
        """Return the recipe with weights."""
        return self.merge.recipe.with_weights(values)


@dataclass(frozen=True)
class LearnedFactors:
    """Factors of the deltas in a merge by inputs.

    They multiply the recipe's factors, or the ones that the merge finds itself; both are means over
    a block. They start at 1, or at what the merge finds.

    Attributes:
        merge: The live merge.
    """

    merge: WeightedMerge
    word = "factor"
    largest = 10.0

    @property
    def blocks(self) -> Sequence[Block | None]:
        """The blocks that have linears."""
        return self.merge.pruned_blocks

    def start(self) -> ByBlock:
        """Return the means of the factors that the merge finds; 1 where the recipe gives some."""
        return self.merge.automatic_factors()

    def set(self, values: Mapping[str, Weight]) -> None:
        """Write the merge with factors."""
        self.merge.set_factors(self._of_rates(values))

    def gradients(self, values: Mapping[str, Weight]) -> AbstractContextManager[torch.Tensor]:
        """Collect the gradient of the factors."""
        of_one = dict.fromkeys(self.merge.recipe.fine_tuned(), 1.0)
        return self.merge.factor_gradients(self._of_rates(of_one))

    def recipe(self, values: Mapping[str, Weight]) -> Recipe:
        """Return the recipe with factors, and with none that the merge would find."""
        recipe = method_table.without_automatic(self.merge.recipe)
        for model, factors in self._of_rates(values).items():
            recipe = recipe.with_by_block(
                model, {AMPLIFICATION_NAMES[rate]: factor for rate, factor in factors.items()}
            )
        return recipe

    def _of_rates(self, values: Mapping[str, Weight]) -> dict[str, dict[int, Weight]]:
        """Model -> rate -> the factor of its partition: the coefficient times the recipe's."""
        return {
            model: {rate: _multiply(values[model], factors) for rate, factors in of_rates.items()}
            for model, of_rates in self._given.items()
        }

    @cached_property
    def _given(self) -> Mapping[str, Mapping[int, Mapping[Block | None, float]]]:
        """Model -> rate -> block -> the recipe's factor."""
        rates = self.merge.rates()
        by_rate = {rate: self.merge.factors(rate) for rate in sorted({*chain(*rates.values())})}
        return {
            model: {rate: by_rate[rate][model] for rate in of_model}
            for model, of_model in rates.items()
        }


def coefficients_of(merge: WeightedMerge) -> Coefficients:
    """Return what can be learned of a live merge."""
    if method_table.coefficient_of(merge.recipe.method) == "factor":
        return LearnedFactors(merge)
    return LearnedWeights(merge)


def _multiply(coefficient: Weight, given: Mapping[Block | None, float]) -> Weight:
    """Return a coefficient times the recipe's factors, by block unless they are all the same."""
    if isinstance(coefficient, (int, float)):
        if len(set(given.values())) == 1:
            return coefficient * next(iter(given.values()))
        return {block: coefficient * factor for block, factor in given.items()}
    return {block: value * given[block] for block, value in coefficient.items()}
