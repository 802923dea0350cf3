"""A whole merge that stays in memory while the weights of its models change.

For methods of this package a listener sees every tensor that the merge combines. The kept elements
of every model are found once, and new weights take one pass of combination over the checkpoints,
with the operations of a merge. Merges of other methods are made anew by mergekit and read into the
live model. Either way the weights are bit for bit those that mergekit writes for the same recipe. A
method that draws at random draws what `--random-seed` RANDOM_SEED draws (where it rescales, its
sums depend on the device and on the number of threads).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from dppa_mergekit.combination.contribution import (
    Combined,
    Contribution,
    DifferentiableCombination,
)
from dppa_mergekit.live.gradients import reduce_gradients
from dppa_mergekit.live.live_tensors import live_part, missing_tensor, write_combined
from dppa_mergekit.live.loading import load_model
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.recipes import Recipe, Weight, identity
from dppa_mergekit.tensor_names import Block, block_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Weights = Mapping[object, Weight]
"""The identity of a model (`recipes.identity`) -> its weight."""


@dataclass(frozen=True)
class _Tensor:
    """A linear or a dense tensor of the merge whose weights can be written.

    Attributes:
        combined: The contributions of the models, and how they are combined.
        models: The identity of the model of each contribution.
        live: (numel,) its live weights.
    """

    combined: Combined
    models: Sequence[object]
    live: torch.Tensor

    @classmethod
    def of(cls, combined: Combined, weights: Mapping[str, torch.Tensor]) -> _Tensor:
        """Find a tensor of the merge among the live weights."""
        models = [identity(contribution.model) for contribution in combined.contributions]
        return cls(combined, models, live_part(weights, combined))

    @property
    def block(self) -> Block | None:
        """The block that holds the tensor; None outside all blocks."""
        return block_of(self.combined.place.name)

    def contributions(self, weights: Weights) -> list[Contribution]:
        """Return the contributions with other weights."""
        return [
            replace(contribution, weight=_in_block(weights[model], self.block))
            for model, contribution in zip(self.models, self.combined.contributions, strict=True)
        ]

    def write(self, contributions: Sequence[Contribution]) -> None:
        """Combine contributions, and write the result."""
        write_combined(self.live, replace(self.combined, contributions=contributions))


@dataclass
class WeightedMerge:
    """A live merge whose weights can be set.

    Attributes:
        recipe: The recipe of the merge.
        workspace: An existing folder on a disk that has room for the merged model.
        model: The live model, in evaluation mode.
        tokenizer: Its tokenizer.
        trust_remote_code: As in mergekit and transformers.
    """

    recipe: Recipe
    workspace: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    trust_remote_code: bool = False
    _tensors: Sequence[_Tensor] = field(default=(), repr=False)
    _written: Recipe | None = field(default=None, repr=False)

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        workspace: Path,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        trust_remote_code: bool = False,
    ) -> WeightedMerge:
        """Merge a recipe and hold the result in memory.

        Args:
            recipe: A recipe of any method whose models have weights.
            workspace: An existing folder on a disk that has room for the merged model.
            device: The device of the live model.
            dtype: The dtype of the live weights; None keeps the one that the merge writes.
            trust_remote_code: As in mergekit and transformers.

        Raises:
            CheckpointError: transformers names a tensor otherwise than the merge does.
            DppaError: The recipe cannot be merged, or the model does not fit the device.
        """
        seen: list[Combined] = []
        with merge_into_folder(recipe, workspace, seen.append, trust_remote_code) as folder:
            model, tokenizer = load_model(folder, device, dtype, trust_remote_code)
        live = model.requires_grad_(False).state_dict()
        tensors = [_Tensor.of(combined, live) for combined in seen]
        return cls(recipe, workspace, model, tokenizer, trust_remote_code, tensors, recipe)

    @property
    def blocks(self) -> list[Block | None]:
        """The blocks in order, then None if a tensor is in none; empty for other methods."""
        blocks = {tensor.block for tensor in self._tensors}
        inside = sorted(block for block in blocks if block is not None)
        return [*inside, None] if None in blocks else list(inside)

    def weights(self) -> dict[str, dict[Block | None, float]]:
        """Return the recipe's weights: fine-tuned model -> block -> weight.

        Where tensors of one block have different weights, this is their mean over elements.
        """
        every: dict[object, dict[Block | None, list[tuple[float, int]]]] = {}
        for tensor in self._tensors:
            contributions = tensor.combined.contributions
            for model, contribution in zip(tensor.models, contributions, strict=True):
                of_block = every.setdefault(model, {}).setdefault(tensor.block, [])
                of_block.append((contribution.weight, tensor.live.numel()))
        return {
            model: {block: _mean(every[identity(model)][block]) for block in self.blocks}
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
                tensor.write(tensor.contributions(by_identity))
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

    def set_factors(self, factors: Mapping[str, Mapping[int, float]]) -> None:
        """Write the merge for new factors of all partitions; methods of this package only.

        Args:
            factors: Fine-tuned model, as the recipe spells it -> rate -> factor of its partition;
                1 where a rate is missing.
        """
        by_identity = {identity(model): of_model for model, of_model in factors.items()}
        for tensor in self._tensors:
            tensor.write(
                [
                    amplify(contribution, by_identity[model])
                    for model, contribution in zip(
                        tensor.models, tensor.combined.contributions, strict=True
                    )
                ]
            )

    def _merge_anew(self, recipe: Recipe) -> None:
        """Let mergekit merge a recipe, and read the result into the live model."""
        live = self.model.state_dict()
        with merge_into_folder(recipe, self.workspace, None, self.trust_remote_code) as folder:
            for path in folder.glob("*.safetensors"):
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        if name not in live:
                            raise missing_tensor(name)
                        live[name].copy_(file.get_tensor(name))

    @contextmanager
    def weight_gradients(self, weights: Mapping[str, Weight]) -> Iterator[torch.Tensor]:
        """Collect the gradient of the weights from backward passes through the live model.

        Args:
            weights: The weights as they were set.

        Yields:
            (models, blocks) float64 zeros, to which every backward pass in the context adds the
            derivatives of its loss in the weights.
        """
        columns = {block: column for column, block in enumerate(self.blocks)}
        rows = {identity(model): row for row, model in enumerate(self.recipe.fine_tuned())}
        gradients = torch.zeros(len(rows), len(columns), dtype=torch.float64)
        by_identity = {identity(model): weight for model, weight in weights.items()}

        def reduce(tensors: Sequence[_Tensor], gradient: torch.Tensor) -> None:
            for tensor in tensors:
                of_tensor = gradient.reshape(-1)[tensor.combined.place.part]
                combination = tensor.combined.combination
                assert isinstance(combination, DifferentiableCombination)
                derivatives = combination.weight_gradients(
                    tensor.contributions(by_identity), of_tensor
                )
                for model, derivative in zip(tensor.models, derivatives, strict=True):
                    gradients[rows[model], columns[tensor.block]] += derivative

        reductions = {
            name: partial(reduce, tensors) for name, tensors in self._by_parameter().items()
        }
        with reduce_gradients(self.model, reductions):
            yield gradients

    def _by_parameter(self) -> dict[str, list[_Tensor]]:
        """Name of a parameter -> the tensors that were written to it.

        A tied parameter has the first of its names. If the merge has a tensor under several of its
        names, the last one counts, since it was written last.
        """
        first = {id(parameter): name for name, parameter in self.model.named_parameters()}
        every = dict(self.model.named_parameters(remove_duplicate=False))
        found: dict[str, dict[int | None, _Tensor]] = {}
        for tensor in self._tensors:
            name = tensor.combined.place.name
            if name in every:
                of_parameter = found.setdefault(first[id(every[name])], {})
                of_parameter[tensor.combined.place.part.start] = tensor
        return {name: list(tensors.values()) for name, tensors in found.items()}


def amplify(contribution: Contribution, factors: Mapping[int, float]) -> Contribution:
    """Return a contribution with other factors of its partitions; dense tensors have none."""
    pruned = contribution.pruned
    rates = pruned.pruning.rates
    if not rates:
        return contribution
    pruning = replace(pruned.pruning, factors=tuple(factors.get(rate, 1.0) for rate in rates))
    return replace(contribution, pruned=replace(pruned, pruning=pruning))


def _mean(weights: Sequence[tuple[float, int]]) -> float:
    """The mean of (weight, number of elements) over elements; exact if all weights are equal."""
    first = weights[0][0]
    if all(weight == first for weight, _ in weights):
        return first
    return sum(weight * numel for weight, numel in weights) / sum(numel for _, numel in weights)


def _in_block(weight: Weight, block: Block | None) -> float:
    return weight if isinstance(weight, (int, float)) else weight[block]
