"""One fine-tuned model, pruned and amplified, that stays in memory while its factors change.

mergekit merges it once, into a folder that is gone when the model is loaded. The merge tells what
it combines, so of every linear the kept elements are held beside the live weights; a new factor is
written to the places of its partition, with the roundings of a merge. The weights are bit for bit
those that mergekit writes for the same recipe with the same factors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dppa_mergekit.combination.contribution import Combined, Contribution, Listener
from dppa_mergekit.combination.weighted_sum import WeightedSum
from dppa_mergekit.deltas.delta import Delta
from dppa_mergekit.errors import CheckpointError, DppaError
from dppa_mergekit.live.gradients import reduce_gradients
from dppa_mergekit.live.kept_elements import Partition, partitions, place
from dppa_mergekit.recipes import Recipe, Setting, at_layer
from dppa_mergekit.sparsification.pruning import Pruned, Pruning
from dppa_mergekit.tensor_names import block_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Linear:
    """A pruned linear: its layer and place in the live weights, and what may be written there."""

    name: str
    layer: int
    part: slice
    out: torch.Tensor
    weight: float
    dtypes: Sequence[torch.dtype]
    partitions: Sequence[Partition]


@dataclass(frozen=True)
class _Dense:
    """A dense tensor whose factor may change: its place in the live weights, and its delta."""

    out: torch.Tensor
    weight: float
    dtypes: Sequence[torch.dtype]
    delta: Delta

    def write(self, factor: float) -> None:
        """Write base plus the weighted, amplified delta."""
        base = self.delta.base
        assert base is not None
        merge_into_folder = torch.empty(base.numel(), dtype=self.dtypes[0], device=base.device)
        contribution = Contribution(Pruned(Pruning.none(self.delta, factor), ()), self.weight)
        WeightedSum().merge(base, [contribution], merge_into_folder, torch.inf)
        for dtype in self.dtypes:
            merge_into_folder = merge_into_folder.to(dtype)
        self.out.copy_(merge_into_folder)


class AmplifiedModel:
    """A live model whose factors can be set.

    Attributes:
        model: The live model, in evaluation mode.
        tokenizer: Its tokenizer.
        rates: The pruning rates whose partitions it has, highest first: 90, 80, ...
        layers: How many layers its pruned linears are in, where all are in one stack; 0 if not.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        linears: Sequence[_Linear],
        dense: Sequence[_Dense],
    ) -> None:
        """Of a live model, and what was held of its merge."""
        self.model, self.tokenizer = model.requires_grad_(False), tokenizer
        self._linears, self._dense = linears, dense
        rates = {held.rate for linear in linears for held in linear.partitions}
        self.rates = tuple(sorted(rates, reverse=True))
        stacks = {block.stack for each in linears if (block := block_of(each.name)) is not None}
        self.layers = max((each.layer for each in linears), default=-1) + 1
        if len(stacks) != 1:
            self.layers = 0
        self._factors: list[dict[int, float]] = [{} for _ in linears]
        self._dense_factor: float | None = None

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        workspace: Path,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        tune_dense: bool = False,
        trust_remote_code: bool = False,
    ) -> AmplifiedModel:
        """Merge a recipe of one fine-tuned model and hold the result in memory.

        Args:
            recipe: With a method that prunes, as `Recipe.alone` makes it.
            workspace: An existing folder on a disk that has room for the merged model.
            device: Where the model lives.
            dtype: Of the live weights; as the merge writes them where None.
            tune_dense: Whether the factor of dense tensors will be set, too.
            trust_remote_code: As mergekit and transformers have it.

        Raises:
            CheckpointError: transformers holds a linear under another name than the merge.
            DppaError: The recipe cannot be merged, or the model does not fit the device.
        """
        found: list[tuple[Combined, list[Partition]]] = []
        dense: list[Combined] = []

        def listen(combined: Combined) -> None:
            (contribution,) = combined.contributions.values()
            if contribution.pruned.pruning.rates:
                found.append((combined, partitions(contribution.pruned)))
            elif tune_dense:
                dense.append(combined)

        with merge_into_folder(recipe, workspace, listen, trust_remote_code) as folder:
            model, tokenizer = load_model(folder, device, dtype, trust_remote_code)
        weights = model.state_dict()
        return cls(
            model,
            tokenizer,
            [
                _Linear(
                    each.name,
                    _layer(each.name),
                    each.part,
                    live_part(weights, each),
                    _weight(each),
                    each.dtypes,
                    [partition.to(model.device) for partition in of_linear],
                )
                for each, of_linear in found
            ],
            [
                _Dense(live_part(weights, each), _weight(each), each.dtypes, _copied(each))
                for each in dense
            ],
        )

    @property
    def bytes_held(self) -> int:
        """The memory that the kept elements take, beside the model."""
        return sum(held.bytes for linear in self._linears for held in linear.partitions)

    def set_factors(self, factors: Mapping[int, Setting], dense: float | None = None) -> None:
        """Write the weights for new factors; what keeps its factor is left alone.

        Args:
            factors: Rate -> factor of its partition, or knots from the first layer to the last,
                where there is one stack of layers; 1 where missing, 0 is a partition left out.
            dense: Factor of dense tensors; as it was, at first the recipe's, where None.
        """
        for linear, before in zip(self._linears, self._factors, strict=True):
            wanted = {
                held.rate: at_layer(factors.get(held.rate, 1.0), linear.layer, self.layers)
                for held in linear.partitions
            }
            moved = [
                (held, wanted[held.rate])
                for held in linear.partitions
                if before.get(held.rate) != wanted[held.rate]
            ]
            if moved:
                place(moved, linear.weight, linear.out, linear.dtypes)
            before.update(wanted)
        if dense is not None and dense != self._dense_factor:
            for tensor in self._dense:
                tensor.write(dense)
            self._dense_factor = dense

    @contextmanager
    def factor_gradients(self) -> Iterator[torch.Tensor]:
        """While open, backward passes add to what is yielded: (rates, layers) dL/dfactor."""
        layers = max((each.layer for each in self._linears), default=-1) + 1
        found = torch.zeros(len(self.rates), layers, dtype=torch.float64)
        rows = {rate: row for row, rate in enumerate(self.rates)}
        of_parameter: dict[str, list[_Linear]] = {}
        for linear in self._linears:
            of_parameter.setdefault(linear.name, []).append(linear)

        def reduce(linears: Sequence[_Linear], gradient: torch.Tensor) -> None:
            for linear in linears:
                flat = gradient.view(-1)[linear.part]
                for held in linear.partitions:
                    of_factor = linear.weight * held.gradient(flat)
                    found[rows[held.rate], linear.layer] += of_factor

        with reduce_gradients(
            self.model, {name: partial(reduce, held) for name, held in of_parameter.items()}
        ):
            yield found


RANDOM_SEED = 0
"""Of what mergekit draws."""


@contextmanager
def merge_into_folder(
    recipe: Recipe,
    workspace: Path,
    listener: Listener | None = None,
    trust_remote_code: bool = False,
) -> Iterator[Path]:
    """The folder of a merge by mergekit, for as long as it is needed.

    What mergekit draws at random is what its `--random-seed` RANDOM_SEED draws.
    """
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import MergeOptions, run_merge

    from dppa_mergekit.merging.mergekit_hooks import listening

    options = MergeOptions(quiet=True, write_model_card=False, trust_remote_code=trust_remote_code)
    with tempfile.TemporaryDirectory(prefix=".dppa-", dir=workspace) as folder:
        LoaderCache.loaders.clear()
        with listening(listener), torch.random.fork_rng():
            torch.manual_seed(RANDOM_SEED)
            run_merge(recipe.configuration(), folder, options)
        LoaderCache.loaders.clear()
        yield Path(folder)


def load_model(
    folder: Path, device: str, dtype: torch.dtype | None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer, to be evaluated.

    Raises:
        DppaError: It does not fit the device, or transformers cannot load it.
    """
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
    )

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = kind.from_pretrained(
            folder, dtype="auto" if dtype is None else dtype, trust_remote_code=trust_remote_code
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    # Whatever transformers raises for what it does not know or cannot read.
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DppaError(f"{folder}: transformers cannot load the model ({reason}).") from error
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    try:
        torch.nn.Module.to(model, torch.device(device))
        _hand_whole_states_to_head(model)
        return model.eval(), tokenizer
    # What torch raises for a device that is full, that is not there, or that it is not built for.
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).splitlines()[:1]).rstrip(".")
        raise DppaError(
            f"The model needs {needed / 1e9:.1f} GB on {device} and cannot be put there ({reason})."
        ) from error


def _hand_whole_states_to_head(model: PreTrainedModel) -> None:
    """Copy the states of a prompt's last token before they are multiplied by the vocabulary.

    transformers takes them as a slice of all states. In half precision on a CPU torch has no fast
    kernel for a slice and weights that need no gradient: with 13 prompts of 100 tokens it takes 3.3
    times as long to SmolLM2-135M's first token, for the same bits (`tests/benchmarks/head.py`).
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers' own
    if head is not None:
        head.register_forward_pre_hook(lambda _, given: tuple(map(torch.Tensor.contiguous, given)))


def live_part(weights: Mapping[str, torch.Tensor], combined: Combined) -> torch.Tensor:
    """Where in live weights a linear, or a dense tensor, is; flat.

    Raises:
        CheckpointError: It is not there, or has another shape.
    """
    live = weights.get(combined.name)
    numel = next(iter(combined.contributions.values())).pruned.pruning.delta.numel
    part = None if live is None else live.view(-1)[combined.part]
    if part is None or part.numel() != numel:
        raise not_live(combined.name)
    return part


def not_live(name: str) -> CheckpointError:
    """That a tensor of a merge is not one of the model that transformers loads."""
    return CheckpointError(
        f"Tensor {name} is not among the weights of the model that transformers loads, or has "
        f"another shape there; it cannot be changed in memory."
    )


def _layer(name: str) -> int:
    block = block_of(name)
    return 0 if block is None else block.number


def _weight(combined: Combined) -> float:
    (contribution,) = combined.contributions.values()
    return contribution.weight


def _copied(combined: Combined) -> Delta:
    (contribution,) = combined.contributions.values()
    delta = contribution.pruned.pruning.delta
    assert delta.base is not None
    return Delta(delta.fine_tuned.clone(), delta.base.clone())
