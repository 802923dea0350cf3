"""What can be learned of a merge: its weights, its factors, or those of all partitions.

In a weighted sum the coefficients are weights. A merge by inputs is linear in the factors of its
deltas, and not in its weights: there they are factors for all partitions of a model, which multiply
those of the recipe. Partition by partition, they are the factors of the partitions (`amplify_90`,
...), in a sum beside weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from dppa_mergekit import method_table
from dppa_mergekit.adamerging.coefficients import (
    FACTOR,
    PARTITION,
    SCOPES,
    Coefficients,
    Numbers,
    Row,
    Table,
)
from dppa_mergekit.combination.contribution import DifferentiableCombination, FactoredCombination
from dppa_mergekit.errors import DppaError
from dppa_mergekit.parameters import AMPLIFICATION_NAMES, WEIGHT
from dppa_mergekit.recipes.by_scope import Scope, Weight, shield
from dppa_mergekit.recipes.references import identity

if TYPE_CHECKING:
    import torch

    from dppa_mergekit.combination.contribution import Contribution
    from dppa_mergekit.live.merged_tensor import MergedTensor
    from dppa_mergekit.live.weighted_merge import ScopeOf, Values, WeightedMerge
    from dppa_mergekit.recipes.recipe import Recipe


class LearnedWeights(Coefficients):
    """The weights of a weighted sum."""

    pruned_only = False

    def _find_rows(self) -> Iterator[Row]:
        """Yield the recipe's weights."""
        yield from _weight_rows(self.merge, self.scope_of)

    def _with_numbers(
        self, tensor: MergedTensor, numbers: Mapping[object, Mapping[str, Weight]]
    ) -> MergedTensor:
        return tensor.weighted(_column(numbers, WEIGHT.name))

    def _derivatives(
        self, tensor: MergedTensor, of_merged: torch.Tensor
    ) -> Iterable[Mapping[str, float]]:
        combined = tensor.combined
        assert isinstance(combined.combination, DifferentiableCombination)
        found = combined.combination.weight_gradients(combined.contributions, of_merged)
        return [{WEIGHT.name: derivative} for derivative in found]

    def recipe(self, table: Table) -> Recipe:
        """Return the recipe with weights."""
        return _with_numbers(self.merge, self.numbers(table))


class LearnedFactors(Coefficients):
    """Factors of the deltas in a merge by inputs.

    They multiply the recipe's factors, or the ones that the merge finds itself; both are means over
    a scope. They start at 1, or at what the merge finds.
    """

    pruned_only = True

    def _find_rows(self) -> Iterator[Row]:
        """Yield the means of the factors that the merge finds; 1 where the recipe gives some."""
        for model, start in self.merge.means(_automatic_factors, self.scope_of).items():
            yield Row(model, FACTOR, start)

    def _with_numbers(
        self, tensor: MergedTensor, numbers: Mapping[object, Mapping[str, Weight]]
    ) -> MergedTensor:
        return tensor.amplified(
            {
                model: self._of_rates(model, named.get(FACTOR, 1.0))
                for model, named in numbers.items()
            }
        )

    def _derivatives(
        self, tensor: MergedTensor, of_merged: torch.Tensor
    ) -> Iterable[Mapping[str, float]]:
        ones = {model: self._of_rates(model, 1.0) for model in tensor.models}
        given = tensor.amplified(ones).combined
        assert isinstance(given.combination, FactoredCombination)
        found = given.combination.factor_gradients(given.place, given.contributions, of_merged)
        return [{FACTOR: derivative} for derivative in found]

    def recipe(self, table: Table) -> Recipe:
        """Return the recipe with factors, and with none that the merge would find."""
        return _with_numbers(
            self.merge,
            {
                model: {
                    AMPLIFICATION_NAMES[rate]: factor
                    for rate, factor in self._of_rates(identity(model), named[FACTOR]).items()
                }
                for model, named in self.numbers(table).items()
            },
        )

    def _of_rates(self, model: object, coefficient: Weight) -> dict[int, Weight]:
        """Rate -> the factor of its partition: the coefficient times the recipe's."""
        return {rate: _multiply(coefficient, given) for rate, given in self._given[model].items()}

    @cached_property
    def _given(self) -> Mapping[object, Mapping[int, Mapping[Scope, float]]]:
        """Identity of a model -> rate -> scope that has it -> the mean of the recipe's factors."""
        rates = self.merge.rates()
        of_rates = {
            rate: self.merge.means(_recipe_factors(rate), self.scope_of)
            for rate in {rate for of_model in rates.values() for rate in of_model}
        }
        return {
            identity(model): {rate: of_rates[rate][model] for rate in of_model}
            for model, of_model in rates.items()
        }


class LearnedPartitions(Coefficients):
    """The factors of all partitions of every linear; in a sum, beside its weight."""

    def __init__(self, merge: WeightedMerge, granularity: str) -> None:
        """Find what can be learned; see `Coefficients`."""
        super().__init__(merge, granularity)
        self.pruned_only = method_table.coefficient_of(merge.recipe.method) == "factor"

    def _find_rows(self) -> Iterator[Row]:
        """Yield the recipe's weights, and its factors times those that the merge finds."""
        if not self.pruned_only:
            yield from _weight_rows(self.merge, self.scope_of)
        found = {id(tensor): _automatic_factors(tensor) for tensor in self.merge.tensors}
        for rate, name in AMPLIFICATION_NAMES.items():
            given = _recipe_factors(rate)

            def multiplied(tensor: MergedTensor, given: Values = given) -> list[float | None]:
                return [
                    None if factor is None or automatic is None else factor * automatic
                    for factor, automatic in zip(given(tensor), found[id(tensor)], strict=True)
                ]

            for model, start in self.merge.means(multiplied, self.scope_of).items():
                yield Row(model, name, start)

    def _with_numbers(
        self, tensor: MergedTensor, numbers: Mapping[object, Mapping[str, Weight]]
    ) -> MergedTensor:
        if not self.pruned_only:
            tensor = tensor.weighted(_column(numbers, WEIGHT.name))
        return tensor.amplified(
            {
                model: {
                    rate: named[name] for rate, name in AMPLIFICATION_NAMES.items() if name in named
                }
                for model, named in numbers.items()
            }
        )

    def _derivatives(
        self, tensor: MergedTensor, of_merged: torch.Tensor
    ) -> Iterable[Mapping[str, float]]:
        combined = tensor.combined
        combination, contributions = combined.combination, combined.contributions
        if isinstance(combination, FactoredCombination):
            found = combination.partition_gradients(combined.place, contributions, of_merged)
            return [
                _named(contribution, factors)
                for contribution, factors in zip(contributions, found, strict=True)
            ]
        assert isinstance(combination, DifferentiableCombination)
        return [
            {WEIGHT.name: of_model.weight, **_named(contribution, of_model.factors)}
            for contribution, of_model in zip(
                contributions, combination.derivatives(contributions, of_merged), strict=True
            )
        ]

    def recipe(self, table: Table) -> Recipe:
        """Return the recipe with weights and factors, and with none that the merge would find."""
        return _with_numbers(self.merge, self.numbers(table))


def coefficients_of(merge: WeightedMerge, granularity: str) -> Coefficients:
    """Return what can be learned of a live merge.

    Args:
        merge: The live merge.
        granularity: A key of SCOPES.
    """
    if granularity == PARTITION:
        return LearnedPartitions(merge, granularity)
    if method_table.coefficient_of(merge.recipe.method) == "factor":
        return LearnedFactors(merge, granularity)
    return LearnedWeights(merge, granularity)


def check_granularity(recipe: Recipe, granularity: str) -> None:
    """Refuse an unknown granularity, or one that the method of a recipe does not have.

    Raises:
        DppaError: It is not a key of SCOPES, or the method has no factors of partitions.
    """
    allowed = list(SCOPES)
    if recipe.method not in method_table.amplified():
        allowed.remove(PARTITION)
    if granularity not in allowed:
        raise DppaError(
            f"granularity is {granularity!r}; allowed for {recipe.method} are {', '.join(allowed)}."
        )


def _weight_rows(merge: WeightedMerge, scope_of: ScopeOf) -> Iterator[Row]:
    """Yield the recipe's weights: means over the elements of a scope."""
    found = merge.means(
        lambda tensor: [of_model.weight for of_model in tensor.combined.contributions], scope_of
    )
    for model, start in found.items():
        yield Row(model, WEIGHT.name, start)


def _automatic_factors(tensor: MergedTensor) -> Sequence[float | None]:
    """Return the factors that the combination finds for a tensor; None for a dense one."""
    combined = tensor.combined
    if not tensor.is_pruned:
        return [None] * len(combined.contributions)
    if not isinstance(combined.combination, FactoredCombination):
        return [1.0] * len(combined.contributions)
    return combined.combination.automatic_factors(combined.place, combined.contributions)


def _recipe_factors(rate: int) -> Values:
    """Return a function that finds a tensor's factors of the partitions of a rate, or None."""

    def factors(tensor: MergedTensor) -> list[float | None]:
        prunings = [one.pruned.pruning for one in tensor.combined.contributions]
        return [
            dict(zip(pruning.rates, pruning.factors, strict=True)).get(rate)
            if pruning.rates
            else None
            for pruning in prunings
        ]

    return factors


def _named(contribution: Contribution, of_partitions: Sequence[float]) -> dict[str, float]:
    """Return name of a row -> number, of one number for each partition."""
    rates = contribution.pruned.pruning.rates
    return {
        AMPLIFICATION_NAMES[rate]: number for rate, number in zip(rates, of_partitions, strict=True)
    }


def _column(numbers: Mapping[object, Mapping[str, Weight]], name: str) -> dict[object, Weight]:
    """Return model -> the coefficients of its row of a name."""
    return {model: named[name] for model, named in numbers.items() if name in named}


def _with_numbers(merge: WeightedMerge, numbers: Numbers) -> Recipe:
    """Return the recipe with numbers, and with no factors that the merge would find."""
    recipe = merge.recipe
    if any(name != WEIGHT.name for named in numbers.values() for name in named):
        recipe = method_table.without_automatic(recipe)
    dense = [tensor.name for tensor in merge.tensors if not tensor.is_pruned]
    for model, named in numbers.items():
        values = {name: _complete(value, dense) for name, value in named.items()}
        recipe = recipe.with_by_scope(model, values)
    return recipe


def _complete(value: Weight, dense: Sequence[str]) -> Weight:
    """Return a number with one for all other tensors, which factors do not change."""
    return value if isinstance(value, (int, float)) else shield({None: 1.0, **value}, dense)


def _multiply(coefficient: Weight, given: Mapping[Scope, float]) -> Weight:
    """Return a coefficient times the recipe's factors, by scope unless they are all the same."""
    if isinstance(coefficient, (int, float)):
        if len(set(given.values())) == 1:
            return coefficient * next(iter(given.values()))
        return {scope: coefficient * factor for scope, factor in given.items()}
    return {scope: value * given[scope] for scope, value in coefficient.items() if scope in given}
