"""A whole merge that stays in memory while the weights of its models change.

Of this package's methods, the merge tells what it combines: what every model keeps is found once,
and new weights are one pass of combination over the checkpoints, with the operations of a merge.
Other methods are merged anew by mergekit, and read into the model that is there. Either way the
weights are bit for bit those that mergekit writes for the same recipe; at random it draws what it
does by `--random-seed` RANDOM_SEED (in rescaling, its sums depend on device and number of threads).
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

from dppa_mergekit.combination.contribution import Combined, Contribution
from dppa_mergekit.live.amplified_model import live_part, load_model, merge_into_folder, not_live
from dppa_mergekit.live.gradients import reduce_gradients
from dppa_mergekit.recipes import Recipe, Weight, identity
from dppa_mergekit.tensor_names import Block, block_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


Weights = Mapping[object, Weight]
"""By the identity of the model."""


@dataclass(frozen=True)
class _Tensor:
    """A linear or a dense tensor: what is combined, of which models, and its live weights."""

    combined: Combined
    models: Sequence[object]
    out: torch.Tensor

    @classmethod
    def of(cls, combined: Combined, live: Mapping[str, torch.Tensor]) -> _Tensor:
        """What is combined, by the identity of its models, and its place in live weights."""
        models = [identity(model) for model in combined.contributions]
        return cls(combined, models, live_part(live, combined))

    @property
    def block(self) -> Block | None:
        """The block that it is in."""
        return block_of(self.combined.name)

    def weighted(self, weights: Weights) -> list[Contribution]:
        """What is combined, with weights."""
        return [
            replace(each, weight=_in_block(weights[model], self.block))
            for model, each in zip(self.models, self.combined.contributions.values(), strict=True)
        ]

    def write(self, weights: Weights) -> None:
        """Combine anew."""
        contributions = self.weighted(weights)
        base = contributions[0].pruned.pruning.delta.base
        assert base is not None
        result = torch.empty(base.numel(), dtype=self.combined.dtypes[0], device=base.device)
        self.combined.combination.merge(base, contributions, result, torch.inf)
        for dtype in self.combined.dtypes:
            result = result.to(dtype)
        self.out.copy_(result)


@dataclass
class WeightedMerge:
    """A live merge whose weights can be set.

    Attributes:
        recipe: Of the merge.
        workspace: An existing folder on a disk that has room for the merged model.
        model: The live model, in evaluation mode.
        tokenizer: Its tokenizer.
        trust_remote_code: As mergekit and transformers have it.
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
            recipe: Of any method whose models have weights.
            workspace: An existing folder on a disk that has room for the merged model.
            device: Where the model lives.
            dtype: Of the live weights; as the merge writes them where None.
            trust_remote_code: As mergekit and transformers have it.

        Raises:
            CheckpointError: transformers holds a tensor under another name than the merge.
            DppaError: The recipe cannot be merged, or the model does not fit the device.
        """
        found: list[Combined] = []
        with merge_into_folder(recipe, workspace, found.append, trust_remote_code) as folder:
            model, tokenizer = load_model(folder, device, dtype, trust_remote_code)
        live = model.requires_grad_(False).state_dict()
        tensors = [_Tensor.of(each, live) for each in found]
        return cls(recipe, workspace, model, tokenizer, trust_remote_code, tensors, recipe)

    @property
    def blocks(self) -> list[Block | None]:
        """Its blocks in order, and None if a tensor is in none; empty for other methods."""
        found = {tensor.block for tensor in self._tensors}
        inside = sorted(block for block in found if block is not None)
        return [*inside, None] if None in found else list(inside)

    def weights(self) -> dict[str, dict[Block | None, float]]:
        """The weights of the recipe: of each model, block by block.

        Where tensors of one block have several, their mean by elements.
        """
        every: dict[object, dict[Block | None, list[tuple[float, int]]]] = {}
        for tensor in self._tensors:
            contributions = tensor.combined.contributions.values()
            for model, each in zip(tensor.models, contributions, strict=True):
                of_block = every.setdefault(model, {}).setdefault(tensor.block, [])
                of_block.append((each.weight, tensor.out.numel()))
        return {
            model: {block: _mean(every[identity(model)][block]) for block in self.blocks}
            for model in self.recipe.fine_tuned()
        }

    def set_weights(self, weights: Mapping[str, Weight]) -> None:
        """Write the weights of the merge for new weights of its models.

        Args:
            weights: Fine-tuned model, as the recipe spells it -> weight; of every one.
        """
        if self._tensors:
            by_identity = {identity(model): weight for model, weight in weights.items()}
            for tensor in self._tensors:
                tensor.write(by_identity)
            return
        recipe = self.recipe.weighted(weights)
        if recipe == self._written:
            return
        self._written = None
        live = self.model.state_dict()
        with merge_into_folder(recipe, self.workspace, None, self.trust_remote_code) as folder:
            for path in folder.glob("*.safetensors"):
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        if name not in live:
                            raise not_live(name)
                        live[name].copy_(file.get_tensor(name))
        self._written = recipe

    @contextmanager
    def weight_gradients(self, weights: Mapping[str, Weight]) -> Iterator[torch.Tensor]:
        """While open, backward passes add to what is yielded: (models, blocks) dL/dweight.

        Args:
            weights: As they were set.
        """
        blocks = {block: column for column, block in enumerate(self.blocks)}
        rows = {identity(model): row for row, model in enumerate(self.recipe.fine_tuned())}
        found = torch.zeros(len(rows), len(blocks), dtype=torch.float64)
        by_identity = {identity(model): weight for model, weight in weights.items()}

        def reduce(tensors: Sequence[_Tensor], gradient: torch.Tensor) -> None:
            for tensor in tensors:
                flat = gradient.reshape(-1)[tensor.combined.part]
                derivatives = tensor.combined.combination.weight_gradients(
                    tensor.weighted(by_identity), flat
                )
                for model, derivative in zip(tensor.models, derivatives, strict=True):
                    found[rows[model], blocks[tensor.block]] += derivative

        of_parameters = {
            name: partial(reduce, tensors) for name, tensors in self._by_parameter().items()
        }
        with reduce_gradients(self.model, of_parameters):
            yield found

    def _by_parameter(self) -> dict[str, list[_Tensor]]:
        """What is written to each parameter of the live model, by its first name.

        Of tied parameters that the merge has under both names, the last is what was written.
        """
        first = {id(each): name for name, each in self.model.named_parameters()}
        every = dict(self.model.named_parameters(remove_duplicate=False))
        found: dict[str, dict[int | None, _Tensor]] = {}
        for tensor in self._tensors:
            name = tensor.combined.name
            if name in every:
                held = found.setdefault(first[id(every[name])], {})
                held[tensor.combined.part.start] = tensor
        return {name: list(held.values()) for name, held in found.items()}


def _mean(weights: Sequence[tuple[float, int]]) -> float:
    """By the number of elements that each holds for; exact where all are one."""
    first = weights[0][0]
    if all(weight == first for weight, _ in weights):
        return first
    return sum(weight * number for weight, number in weights) / sum(n for _, n in weights)


def _in_block(weight: Weight, block: Block | None) -> float:
    return weight if isinstance(weight, (int, float)) else weight[block]
