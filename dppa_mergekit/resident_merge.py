"""A whole merge that stays in memory while the weights of its models change.

Of this package's methods, the merge tells what it combines: what every model keeps is found once,
and new weights are one pass of combination over the checkpoints, with the operations of a merge.
Other methods are merged anew by mergekit, and read into the model that is there. Either way the
weights are bit for bit those that mergekit writes for the same recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from dppa_mergekit.combination import Combined
from dppa_mergekit.recipes import Recipe, identity
from dppa_mergekit.resident import load_model, merged, not_live, part_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Tensor:
    """A linear or a dense tensor: what is combined, and its place in the live weights."""

    combined: Combined
    out: torch.Tensor

    def write(self, weights: Mapping[object, float]) -> None:
        """Combine anew, by the identity of the model -> weight."""
        contributions = [
            replace(each, weight=weights[identity(name)])
            for name, each in self.combined.contributions.items()
        ]
        base = contributions[0].pruned.pruning.delta.base
        assert base is not None
        result = torch.empty(base.numel(), dtype=self.combined.dtypes[0], device=base.device)
        self.combined.combination.merge(base, contributions, result, torch.inf)
        for dtype in self.combined.dtypes:
            result = result.to(dtype)
        self.out.copy_(result)


@dataclass
class ResidentMerge:
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

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        workspace: Path,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        trust_remote_code: bool = False,
    ) -> ResidentMerge:
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
        with merged(recipe, workspace, found.append, trust_remote_code) as folder:
            model, tokenizer = load_model(folder, device, dtype, trust_remote_code)
        live = model.requires_grad_(False).state_dict()
        tensors = [_Tensor(each, part_in(live, each)) for each in found]
        return cls(recipe, workspace, model, tokenizer, trust_remote_code, tensors)

    def set_weights(self, weights: Mapping[str, float]) -> None:
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
        live = self.model.state_dict()
        with merged(recipe, self.workspace, None, self.trust_remote_code) as folder:
            for path in folder.glob("*.safetensors"):
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118
                        if name not in live:
                            raise not_live(name)
                        live[name].copy_(file.get_tensor(name))
