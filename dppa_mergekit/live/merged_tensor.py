"""One tensor of a merge in memory, which can be combined anew with other weights or factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from dppa_mergekit.combination.contribution import Combined, Contribution, FactoredCombination
from dppa_mergekit.live.live_tensors import live_part, write_combined
from dppa_mergekit.recipes.by_scope import Weight, value_at
from dppa_mergekit.recipes.references import identity
from dppa_mergekit.tensor_names import Block, block_of

Weights = Mapping[object, Weight]
"""The identity of a model (`recipes.identity`) -> its weight."""

Factors = Mapping[object, Mapping[int, Weight]]
"""The identity of a model -> pruning rate -> the factor of its partition."""


@dataclass(frozen=True)
class MergedTensor:
    """A linear or a dense tensor of the merge, whose live weights can be written.

    Attributes:
        combined: The contributions of the models, and how they are combined.
        models: The identity of the model of each contribution.
        live: (numel,) its live weights.
    """

    combined: Combined
    models: Sequence[object]
    live: torch.Tensor

    @classmethod
    def of(cls, combined: Combined, weights: Mapping[str, torch.Tensor]) -> MergedTensor:
        """Find a tensor of the merge among the live weights."""
        models = [identity(contribution.model) for contribution in combined.contributions]
        return cls(combined, models, live_part(weights, combined))

    @property
    def name(self) -> str:
        """The name of the tensor, which may stack several linears."""
        return self.combined.place.name

    @property
    def block(self) -> Block | None:
        """The block that holds the tensor; None outside all blocks."""
        return block_of(self.name)

    @property
    def is_pruned(self) -> bool:
        """Whether its deltas have partitions; those of a dense tensor have none."""
        return any(of_model.pruned.pruning.rates for of_model in self.combined.contributions)

    def weighted(self, weights: Weights) -> MergedTensor:
        """Return the tensor with other weights."""
        contributions = [
            replace(contribution, weight=value_at(weights[model], self.name))
            for model, contribution in zip(self.models, self.combined.contributions, strict=True)
        ]
        return replace(self, combined=replace(self.combined, contributions=contributions))

    def amplified(self, factors: Factors) -> MergedTensor:
        """Return the tensor with other factors, and none that the combination finds."""
        contributions = [
            _amplify(contribution, factors[model], self.name)
            for model, contribution in zip(self.models, self.combined.contributions, strict=True)
        ]
        combination = self.combined.combination
        if isinstance(combination, FactoredCombination):
            combination = combination.without_automatic()
        combined = replace(self.combined, combination=combination, contributions=contributions)
        return replace(self, combined=combined)

    def write(self) -> None:
        """Combine, and write the result."""
        write_combined(self.live, self.combined)


def _amplify(contribution: Contribution, factors: Mapping[int, Weight], name: str) -> Contribution:
    """Return a contribution with other factors of its partitions; dense tensors have none."""
    pruned = contribution.pruned
    rates = pruned.pruning.rates
    if not rates:
        return contribution
    of_rates = tuple(value_at(factors.get(rate, 1.0), name) for rate in rates)
    pruning = replace(pruned.pruning, factors=of_rates)
    return replace(contribution, pruned=replace(pruned, pruning=pruning))
