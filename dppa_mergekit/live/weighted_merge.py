"""A whole merge that stays in memory while the weights or factors of its models change.

For methods of this package a listener sees every tensor that the merge combines. The kept elements
of every model are found once, and new weights take one pass of combination over the checkpoints,
with the operations of a merge. Merges of other methods are made anew by mergekit and read into the
live model. Either way the weights are bit for bit those that mergekit writes for the same recipe. A
method that draws at random draws what `--random-seed` RANDOM_SEED draws (where it rescales, its
sums depend on the device and on the number of threads).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from safetensors import safe_open

from dppa_mergekit.checkpoints.loading_options import DEFAULT_LOADING, LoadingOptions
from dppa_mergekit.combination.contribution import Combined
from dppa_mergekit.live.gradients import reduce_gradients
from dppa_mergekit.live.live_tensors import missing_tensor
from dppa_mergekit.live.loading import load_model
from dppa_mergekit.live.merged_tensor import MergedTensor
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.recipes.by_scope import Scope, Weight, in_order
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.recipes.references import identity

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


ScopeOf: TypeAlias = Callable[[MergedTensor], Scope]
"""Returns the scope of a tensor."""

Values: TypeAlias = Callable[[MergedTensor], Sequence[float | None]]
"""Returns a number of each contribution to a tensor; None for those that have none."""


@dataclass
class WeightedMerge:
    """A live merge whose weights or factors can be set.

    Attributes:
        recipe: The recipe of the merge.
        workspace: An existing folder on a disk that has room for the merged model.
        model: The live model, in evaluation mode.
        tokenizer: Its tokenizer.
        loading: How models are loaded.
        tensors: The tensors that the merge combines; empty for other methods.
    """

    recipe: Recipe
    workspace: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    loading: LoadingOptions = DEFAULT_LOADING
    tensors: Sequence[MergedTensor] = field(default=(), repr=False)
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

    def means(self, values: Values, scope_of: ScopeOf) -> dict[str, dict[Scope, float]]:
        """Return the means of a number of every model over the elements of each scope.

        Args:
            values: Returns the numbers of a tensor's contributions; None for those that have none.
            scope_of: Returns the scope of a tensor.

        Returns:
            Fine-tuned model, as the recipe spells it -> scope, in order -> number.
        """
        every: dict[object, dict[Scope, list[tuple[float, int]]]] = {}
        for tensor in self.tensors:
            for model, value in zip(tensor.models, values(tensor), strict=True):
                if value is not None:
                    of_model = every.setdefault(model, {})
                    of_scope = of_model.setdefault(scope_of(tensor), [])
                    of_scope.append((value, tensor.live.numel()))
        return {
            model: {
                scope: _mean(every[identity(model)][scope])
                for scope in in_order(every.get(identity(model), ()))
            }
            for model in self.recipe.fine_tuned()
        }

    def set_weights(self, weights: Mapping[str, Weight]) -> None:
        """Write the merge for new weights of its models.

        Args:
            weights: Fine-tuned model, as the recipe spells it -> its weight, for every model.

        Raises:
            DppaError: mergekit cannot merge, or writes a tensor that the live model lacks (other
                methods only).
        """
        if self.tensors:
            by_identity = {identity(model): weight for model, weight in weights.items()}
            self.write(lambda tensor: tensor.weighted(by_identity))
            return
        recipe = self.recipe.with_weights(weights)
        if recipe != self._written:
            self._written = None
            self._merge_anew(recipe)
            self._written = recipe

    def rates(self) -> dict[str, list[int]]:
        """Return fine-tuned model -> the pruning rates of its partitions, highest first."""
        found: dict[object, set[int]] = {}
        for tensor in self.tensors:
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
        self.write(lambda tensor: tensor.amplified(by_identity))

    def set_both(
        self, weights: Mapping[str, Weight], factors: Mapping[str, Mapping[int, Weight]]
    ) -> None:
        """Write the merge for new weights and factors; methods of this package only.

        The arguments are those of `set_weights` and `set_factors`.
        """
        of_models = {identity(model): weight for model, weight in weights.items()}
        of_partitions = {identity(model): of_model for model, of_model in factors.items()}
        self.write(lambda tensor: tensor.weighted(of_models).amplified(of_partitions))

    def restore(self) -> None:
        """Write the merge of the recipe; methods of this package only."""
        self.write(lambda tensor: tensor)

    def write(self, change: Callable[[MergedTensor], MergedTensor]) -> None:
        """Write every tensor of the merge; methods of this package only.

        Args:
            change: Returns a tensor with other weights or factors.
        """
        for tensor in self.tensors:
            change(tensor).write()

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

    def passing_gradients(
        self, take: Callable[[MergedTensor, torch.Tensor], None], pruned_only: bool = False
    ) -> AbstractContextManager[None]:
        """Pass gradients to a function, tensor by tensor, in backward passes through the model.

        Args:
            take: Called with a tensor and the derivative of a loss in its merged elements,
                (numel,), which it borrows.
            pruned_only: Whether dense tensors are left out.

        Returns:
            A context in which that happens.
        """

        def reduce(tensors: Sequence[MergedTensor], gradient: torch.Tensor) -> None:
            for tensor in tensors:
                take(tensor, gradient.reshape(-1)[tensor.combined.place.part])

        return reduce_gradients(
            self.model,
            {
                name: partial(reduce, tensors)
                for name, tensors in self._by_parameter(pruned_only).items()
            },
        )

    def _by_parameter(self, pruned_only: bool) -> dict[str, list[MergedTensor]]:
        """Name of a parameter -> the tensors, or linears alone, that were written to it.

        A tied parameter has the first of its names. If the merge has a tensor under several of its
        names, the last one counts, since it was written last.
        """
        first = {id(parameter): name for name, parameter in self.model.named_parameters()}
        every = dict(self.model.named_parameters(remove_duplicate=False))
        found: dict[str, dict[int | None, MergedTensor]] = {}
        for tensor in self.tensors:
            name = tensor.combined.place.name
            if name in every and (tensor.is_pruned or not pruned_only):
                of_parameter = found.setdefault(first[id(every[name])], {})
                of_parameter[tensor.combined.place.part.start] = tensor
        return {name: list(tensors.values()) for name, tensors in found.items()}


def _mean(weights: Sequence[tuple[float, int]]) -> float:
    """The mean of (weight, number of elements) over elements; exact if all weights are equal."""
    first = weights[0][0]
    if all(weight == first for weight, _ in weights):
        return first
    return sum(weight * numel for weight, numel in weights) / sum(numel for _, numel in weights)
