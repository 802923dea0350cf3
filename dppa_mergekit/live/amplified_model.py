"""One fine-tuned model, pruned and amplified, that stays in memory while its factors change.

mergekit merges the model once, into a folder that is deleted when the live model is loaded. A
listener sees every tensor that the merge combines, so the kept elements of every linear are copied
beside the live weights. A new factor is then written to the elements of its partition, with the
roundings of a merge: the weights are bit for bit those that mergekit writes for the same recipe
with the same factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dppa_mergekit.combination.contribution import Combined, Contribution, Place
from dppa_mergekit.combination.weighted_sum import WeightedSum
from dppa_mergekit.deltas.delta import Delta
from dppa_mergekit.live.gradients import reduce_gradients
from dppa_mergekit.live.kept_elements import Partition, copy_partitions, write_factors
from dppa_mergekit.live.live_tensors import live_part, write_combined
from dppa_mergekit.live.loading import load_model
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.recipes.recipe import Recipe, Setting, at_layer
from dppa_mergekit.sparsification.pruning import Pruned, Pruning
from dppa_mergekit.tensor_names import block_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Linear:
    """A pruned linear whose factors can be written to its live weights.

    Attributes:
        name: The name of its tensor.
        layer: The number of its block; 0 outside all blocks.
        part: Its elements in the flat tensor.
        live: (numel,) its live weights.
        weight: The weight of the model in the merge.
        dtypes: The dtypes that the merge casts to, one after the other.
        partitions: Its kept elements, a partition for each pruning rate.
    """

    name: str
    layer: int
    part: slice
    live: torch.Tensor
    weight: float
    dtypes: Sequence[torch.dtype]
    partitions: Sequence[Partition]

    @classmethod
    def of(
        cls,
        combined: Combined,
        partitions: Sequence[Partition],
        weights: Mapping[str, torch.Tensor],
    ) -> _Linear:
        """Find a linear of the merge among the live weights, and hold its partitions there."""
        live = live_part(weights, combined)
        block = block_of(combined.place.name)
        return cls(
            combined.place.name,
            0 if block is None else block.number,
            combined.place.part,
            live,
            _contribution(combined).weight,
            combined.dtypes,
            [partition.to(live.device) for partition in partitions],
        )

    def write(self, factors: Mapping[int, float], before: Mapping[int, float]) -> None:
        """Write the partitions whose factor differs from the one before.

        Args:
            factors: Rate -> factor.
            before: Rate -> factor that the live weights have; empty at first.
        """
        changed = [
            (partition, factors[partition.rate])
            for partition in self.partitions
            if before.get(partition.rate) != factors[partition.rate]
        ]
        if changed:
            write_factors(changed, self.weight, self.live, self.dtypes)


@dataclass(frozen=True)
class _Dense:
    """A dense tensor whose factor can be written to its live weights.

    Attributes:
        live: (numel,) its live weights.
        place: Its place in the merge.
        weight: The weight of the model in the merge.
        dtypes: The dtypes that the merge casts to, one after the other.
        delta: (numel,) a copy of its delta.
    """

    live: torch.Tensor
    place: Place
    weight: float
    dtypes: Sequence[torch.dtype]
    delta: Delta

    @classmethod
    def of(cls, combined: Combined, weights: Mapping[str, torch.Tensor]) -> _Dense:
        """Find a dense tensor of the merge among the live weights, and copy its delta."""
        contribution = _contribution(combined)
        delta = contribution.pruned.pruning.delta
        assert delta.base is not None
        copied = Delta(delta.fine_tuned.clone(), delta.base.clone())
        live = live_part(weights, combined)
        return cls(live, combined.place, contribution.weight, combined.dtypes, copied)

    def write(self, factor: float) -> None:
        """Write base plus the weighted, amplified delta."""
        contribution = Contribution(Pruned(Pruning.keep_all(self.delta, factor), ()), self.weight)
        combined = Combined(self.place, WeightedSum(), [contribution], self.dtypes)
        write_combined(self.live, combined)


class AmplifiedModel:
    """A live model whose factors can be set.

    Attributes:
        model: The live model, in evaluation mode.
        tokenizer: Its tokenizer.
        rates: The pruning rates of its partitions, highest first: 90, 80, ...
        layers: The number of layers that hold its pruned linears, if all are in one stack; else 0.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        linears: Sequence[_Linear],
        dense: Sequence[_Dense],
    ) -> None:
        """Make the factors of a live model settable; `load` is the way to get one."""
        self.model, self.tokenizer = model.requires_grad_(False), tokenizer
        self._linears, self._dense = linears, dense
        rates = {partition.rate for linear in linears for partition in linear.partitions}
        self.rates = tuple(sorted(rates, reverse=True))
        stacks = {block.stack for linear in linears if (block := block_of(linear.name)) is not None}
        self.layers = self._depth() if len(stacks) == 1 else 0
        self._factors: list[dict[int, float]] = [{} for _ in linears]
        self._dense_factor: float | None = None

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        workspace: Path,
        placement: Placement = AS_STORED,
        tune_dense: bool = False,
    ) -> AmplifiedModel:
        """Merge a recipe of one fine-tuned model and hold the result in memory.

        Args:
            recipe: A recipe of a method that prunes, with one fine-tuned model (see
                `Recipe.with_only`).
            workspace: An existing folder on a disk that has room for the merged model.
            placement: Where and how the model is held.
            tune_dense: Whether the factor of dense tensors will be set, too. This holds a copy of
                every dense delta.

        Raises:
            CheckpointError: transformers names a linear otherwise than the merge does.
            DppaError: The recipe cannot be merged, or the model does not fit the device.
        """
        pruned: list[tuple[Combined, list[Partition]]] = []
        dense: list[Combined] = []

        def listen(combined: Combined) -> None:
            contribution = _contribution(combined)
            if contribution.pruned.pruning.rates:
                pruned.append((combined, copy_partitions(contribution.pruned)))
            elif tune_dense:
                dense.append(combined)

        with merge_into_folder(recipe, workspace, listen, placement.loading) as folder:
            model, tokenizer = load_model(folder, placement)
        weights = model.state_dict()
        return cls(
            model,
            tokenizer,
            [_Linear.of(combined, partitions, weights) for combined, partitions in pruned],
            [_Dense.of(combined, weights) for combined in dense],
        )

    def set_factors(self, factors: Mapping[int, Setting], dense: float | None = None) -> None:
        """Write the weights for new factors; a partition that keeps its factor is not touched.

        Args:
            factors: Rate -> factor of its partition. A factor is a number, or, where all layers are
                in one stack, knots from the first layer to the last. A missing rate has factor 1;
                factor 0 leaves the partition out.
            dense: The factor of dense tensors. None leaves it as it is, which at first is the
                recipe's.
        """
        for linear, before in zip(self._linears, self._factors, strict=True):
            wanted = {
                partition.rate: at_layer(
                    factors.get(partition.rate, 1.0), linear.layer, self.layers
                )
                for partition in linear.partitions
            }
            linear.write(wanted, before)
            before.update(wanted)
        if dense is not None and dense != self._dense_factor:
            for tensor in self._dense:
                tensor.write(dense)
            self._dense_factor = dense

    @contextmanager
    def factor_gradients(self) -> Iterator[torch.Tensor]:
        """Collect the gradient of the factors from backward passes through the model.

        Yields:
            (rates, layers) float64 zeros, to which every backward pass in the context adds the
            derivatives of its loss in the factors.
        """
        gradients = torch.zeros(len(self.rates), self._depth(), dtype=torch.float64)
        rows = {rate: row for row, rate in enumerate(self.rates)}
        linears_of: dict[str, list[_Linear]] = {}
        for linear in self._linears:
            linears_of.setdefault(linear.name, []).append(linear)

        def reduce(linears: Sequence[_Linear], gradient: torch.Tensor) -> None:
            for linear in linears:
                of_linear = gradient.view(-1)[linear.part]
                for partition in linear.partitions:
                    derivative = linear.weight * partition.gradient(of_linear)
                    gradients[rows[partition.rate], linear.layer] += derivative

        reductions = {name: partial(reduce, linears) for name, linears in linears_of.items()}
        with reduce_gradients(self.model, reductions):
            yield gradients

    def _depth(self) -> int:
        """One more than the largest layer of a pruned linear; 0 if there is none."""
        return max((linear.layer for linear in self._linears), default=-1) + 1


def _contribution(combined: Combined) -> Contribution:
    """The contribution of the only fine-tuned model."""
    (contribution,) = combined.contributions
    return contribution
