"""A whole merge that stays in memory while the weights or factors of its models change.

For methods of this package a listener sees every tensor that the merge combines. The kept elements
of every model are found once, and new weights take one pass of combination over the checkpoints,
with the operations of a merge. Merges of other methods are made anew by mergekit and read into the
live model. Either way the weights are bit for bit those that mergekit writes for the same recipe. A
method that draws at random draws what `--random-seed` RANDOM_SEED draws (where it rescales, its
sums depend on the device and on the number of threads).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from dppa_mergekit.checkpoints.loading_options import DEFAULT_LOADING, LoadingOptions
from dppa_mergekit.combination.contribution import (
    Combined,
    DifferentiableCombination,
    FactoredCombination,
)
from dppa_mergekit.live.gradients import reduce_gradients
from dppa_mergekit.live.live_tensors import missing_tensor
from dppa_mergekit.live.loading import load_model
from dppa_mergekit.live.merged_tensor import MergedTensor
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.recipes.recipe import Recipe, Weight
from dppa_mergekit.recipes.references import identity
from dppa_mergekit.tensor_names import Block

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


ByBlock = dict[str, dict[Block | None, float]]
"""Fine-tuned model -> block -> number."""


@dataclass
class WeightedMerge:
    """A live merge whose weights or factors can be set.

    Attributes:
        recipe: The recipe of the merge.
        workspace: An existing folder on a disk that has room for the merged model.
        model: The live model, in evaluation mode.
        tokenizer: Its tokenizer.
        loading: How models are loaded.
    """

    recipe: Recipe
    workspace: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    loading: LoadingOptions = DEFAULT_LOADING
    _tensors: Sequence[MergedTensor] = field(default=(), repr=False)
    _written: Recipe | None = field(default=None, repr=False)

    @classmethod
    def load(
        cls, recipe: Recipe, workspace: Path, placement: Placement = AS_STORED
    ) -> WeightedMerge:
        """Merge a recipe and hold the result in memory.

        Args:
            recipe: A recipe of any method whose models have weights.
            workspace: An existing folder on a disk that has room for the merged model.
            placement: Where and how the merge is held.

        Raises:
            CheckpointError: transformers names a tensor otherwise than the merge does.
            DppaError: The recipe cannot be merged, or the model does not fit the device.
        """
        seen: list[Combined] = []
        loading = placement.loading
        with merge_into_folder(recipe, workspace, seen.append, loading) as folder:
            model, tokenizer = load_model(folder, placement)
        live = model.requires_grad_(False).state_dict()
        tensors = [MergedTensor.of(combined, live) for combined in seen]
        return cls(recipe, workspace, model, tokenizer, loading, tensors, recipe)

    @property
    def blocks(self) -> list[Block | None]:
        """The blocks in order, then None if a tensor is in none; empty for other methods."""
        blocks = {tensor.block for tensor in self._tensors}
        inside = sorted(block for block in blocks if block is not None)
        return [*inside, None] if None in blocks else list(inside)

    @property
    def pruned_blocks(self) -> list[Block | None]:
        """Those of the blocks that have linears."""
        pruned = {tensor.block for tensor in self._tensors if tensor.is_pruned}
        return [block for block in self.blocks if block in pruned]

    def weights(self) -> ByBlock:
        """Return the recipe's weights.

        Where tensors of one block have different weights, this is their mean over elements.
        """
        return self._means(
            lambda tensor: [of_model.weight for of_model in tensor.combined.contributions],
            self._tensors,
        )

    def factors(self, rate: int) -> ByBlock:
        """Return the recipe's factors of the partitions of a rate; their means, as for weights."""
        return self._means(
            lambda tensor: [
                dict(
                    zip(of_model.pruned.pruning.rates, of_model.pruned.pruning.factors, strict=True)
                ).get(rate, 1.0)
                for of_model in tensor.combined.contributions
            ],
            [tensor for tensor in self._tensors if tensor.is_pruned],
        )

    def automatic_factors(self) -> ByBlock:
        """Return the factors that the combination finds; 1 where it finds none."""

        def find(tensor: MergedTensor) -> list[float]:
            combined = tensor.combined
            combination = combined.combination
            if not isinstance(combination, FactoredCombination):
                return [1.0] * len(combined.contributions)
            return combination.automatic_factors(combined.place, combined.contributions)

        return self._means(find, [tensor for tensor in self._tensors if tensor.is_pruned])

    def _means(
        self, values: Callable[[MergedTensor], Sequence[float]], tensors: Iterable[MergedTensor]
    ) -> ByBlock:
        """Return the means of a number of every model over the elements of each block."""
        every: dict[object, dict[Block | None, list[tuple[float, int]]]] = {}
        for tensor in tensors:
            for model, value in zip(tensor.models, values(tensor), strict=True):
                of_block = every.setdefault(model, {}).setdefault(tensor.block, [])
                of_block.append((value, tensor.live.numel()))
        return {
            model: {
                block: _mean(every[identity(model)][block])
                for block in self.blocks
                if block in every[identity(model)]
            }
            for model in self.recipe.fine_tuned()
        }

    def set_weights(self, weights: Mapping[str, Weight]) -> None:
        """Write the merge for new weights of its models.

        Args:
            weights: Fine-tuned model, as the recipe spells it -> its weight, for every model.

        Raises:
            CheckpointError: mergekit writes a tensor that the live model lacks (other methods
                only).
        """
        if self._tensors:
            by_identity = {identity(model): weight for model, weight in weights.items()}
            for tensor in self._tensors:
                tensor.write(tensor.weighted(by_identity))
            return
        recipe = self.recipe.with_weights(weights)
        if recipe != self._written:
            self._written = None
            self._merge_anew(recipe)
            self._written = recipe

    def rates(self) -> dict[str, list[int]]:
        """Return fine-tuned model -> the pruning rates of its partitions, highest first."""
        found: dict[object, set[int]] = {}
        for tensor in self._tensors:
            for model, contribution in zip(
                tensor.models, tensor.combined.contributions, strict=True
            ):
                found.setdefault(model, set()).update(contribution.pruned.pruning.rates)
        return {
            model: sorted(found.get(identity(model), ()), reverse=True)
            for model in self.recipe.fine_tuned()
        }

    def set_factors(self, factors: Mapping[str, Mapping[int, Weight]]) -> None:
        """Write the merge for new factors of all partitions; methods of this package only.

        Args:
            factors: Fine-tuned model, as the recipe spells it -> rate -> factor of its partition;
                1 where a rate is missing.
        """
        by_identity = {identity(model): of_model for model, of_model in factors.items()}
        for tensor in self._tensors:
            tensor.write(tensor.amplified(by_identity))

    def restore(self) -> None:
        """Write the merge of the recipe; methods of this package only."""
        for tensor in self._tensors:
            tensor.write(tensor.combined)

    def _merge_anew(self, recipe: Recipe) -> None:
        """Let mergekit merge a recipe, and read the result into the live model."""
        live = self.model.state_dict()
        with merge_into_folder(recipe, self.workspace, None, self.loading) as folder:
            for path in folder.glob("*.safetensors"):
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        if name not in live:
                            raise missing_tensor(name)
                        live[name].copy_(file.get_tensor(name))

    def weight_gradients(
        self, weights: Mapping[str, Weight]
    ) -> AbstractContextManager[torch.Tensor]:
        """Collect the gradient of the weights from backward passes through the live model.

        Args:
            weights: The weights as they were set.

        Returns:
            A context whose value is (models, blocks) float64 zeros, to which every backward pass
            in the context adds the derivatives of its loss in the weights.
        """
        by_identity = {identity(model): weight for model, weight in weights.items()}

        def differentiate(tensor: MergedTensor, of_merged: torch.Tensor) -> list[float]:
            combined = tensor.weighted(by_identity)
            assert isinstance(combined.combination, DifferentiableCombination)
            return combined.combination.weight_gradients(combined.contributions, of_merged)

        return self._gradients(differentiate, self.blocks)

    def factor_gradients(
        self, factors: Mapping[str, Mapping[int, Weight]]
    ) -> AbstractContextManager[torch.Tensor]:
        """Collect the gradient of a coefficient of each model and block, which multiplies factors.

        Args:
            factors: What the coefficients multiply; see `set_factors`.

        Returns:
            As `weight_gradients`, of shape (models, pruned blocks).
        """
        by_identity = {identity(model): of_model for model, of_model in factors.items()}

        def differentiate(tensor: MergedTensor, of_merged: torch.Tensor) -> list[float]:
            combined = tensor.amplified(by_identity)
            assert isinstance(combined.combination, FactoredCombination)
            return combined.combination.factor_gradients(
                combined.place, combined.contributions, of_merged
            )

        return self._gradients(differentiate, self.pruned_blocks)

    @contextmanager
    def _gradients(
        self,
        differentiate: Callable[[MergedTensor, torch.Tensor], Sequence[float]],
        blocks: Sequence[Block | None],
    ) -> Iterator[torch.Tensor]:
        """Collect derivatives in a number of each model and block; see `weight_gradients`.

        Args:
            differentiate: Returns the derivatives in the number of each of a tensor's models, given
                the derivative in its merged elements.
            blocks: The blocks that count.
        """
        columns = {block: column for column, block in enumerate(blocks)}
        rows = {identity(model): row for row, model in enumerate(self.recipe.fine_tuned())}
        gradients = torch.zeros(len(rows), len(columns), dtype=torch.float64)

        def reduce(tensors: Sequence[MergedTensor], gradient: torch.Tensor) -> None:
            for tensor in tensors:
                derivatives = differentiate(
                    tensor, gradient.reshape(-1)[tensor.combined.place.part]
                )
                for model, derivative in zip(tensor.models, derivatives, strict=True):
                    gradients[rows[model], columns[tensor.block]] += derivative

        reductions = {
            name: partial(reduce, tensors) for name, tensors in self._by_parameter(columns).items()
        }
        with reduce_gradients(self.model, reductions):
            yield gradients

    def _by_parameter(self, blocks: Container[Block | None]) -> dict[str, list[MergedTensor]]:
        """Name of a parameter -> the tensors of some blocks that were written to it.

        A tied parameter has the first of its names. If the merge has a tensor under several of its
        names, the last one counts, since it was written last.
        """
        first = {id(parameter): name for name, parameter in self.model.named_parameters()}
        every = dict(self.model.named_parameters(remove_duplicate=False))
        found: dict[str, dict[int | None, MergedTensor]] = {}
        for tensor in self._tensors:
            name = tensor.combined.place.name
            if name in every and tensor.block in blocks:
                of_parameter = found.setdefault(first[id(every[name])], {})
                of_parameter[tensor.combined.place.part.start] = tensor
        return {name: list(tensors.values()) for name, tensors in found.items()}


def _mean(weights: Sequence[tuple[float, int]]) -> float:
    """The mean of (weight, number of elements) over elements; exact if all weights are equal."""
    first = weights[0][0]
    if all(weight == first for weight, _ in weights):
        return first
    return sum(weight * numel for weight, numel in weights) / sum(numel for _, numel in weights)
