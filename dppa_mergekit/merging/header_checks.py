"""What the headers of a merge's inputs show before the first tensor is read."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dppa_mergekit.checkpoints.headers import PLAIN_DTYPES, Checkpoint, Header
from dppa_mergekit.checkpoints.tensor_loading import (
    checkpoint_of,
    is_convertible,
    is_embeddings_for_head,
    own_name,
    possible_names,
)
from dppa_mergekit.errors import CheckpointError, RecipeError
from dppa_mergekit.tensor_names import block_of, linears_in

if TYPE_CHECKING:
    from mergekit.common import ModelReference

    from dppa_mergekit.checkpoints.tensor_loading import Load
    from dppa_mergekit.merging.planned_tensor import PlannedTensor

LOG = logging.getLogger(__name__)


@dataclass
class InputHeaders:
    """The headers of the checkpoints that one merge reads.

    Attributes:
        checkpoints: Model -> its files, once a tensor of it was looked up.
    """

    checkpoints: dict[ModelReference, Checkpoint] = field(default_factory=dict)
    _searched: set[ModelReference] = field(default_factory=set)
    _without: set[ModelReference] = field(default_factory=set)

    def checkpoint(self, model: ModelReference, load: Load) -> Checkpoint:
        """The files that a tensor of a model is read from."""
        if model not in self.checkpoints:
            self.checkpoints[model] = checkpoint_of(load, model)
        return self.checkpoints[model]

    def stored_name(self, model: ModelReference, load: Load) -> str | None:
        """The name under which a model stores a tensor; None if it lacks it or packs it on load."""
        return self.checkpoint(model, load).stored_name(possible_names(load))

    def header(self, model: ModelReference, load: Load) -> Header | None:
        """The header of a model's tensor; None if it lacks it or packs it on load."""
        stored = self.stored_name(model, load)
        return None if stored is None else self.checkpoint(model, load).header(stored)

    def check(self, planned: PlannedTensor, method: str) -> Header | None:
        """Refuse inputs that cannot be merged.

        Args:
            planned: The output tensor and its inputs.
            method: Name of the merge method, for the message.

        Returns:
            The header of the base's tensor; None if the base lacks it or packs it on load.

        Raises:
            RecipeError: The recipe's slices move the layer.
            CheckpointError: A tensor is missing, quantised, or of another shape than the base's.
        """
        _refuse_moved_layers(planned, method)
        headers: dict[ModelReference, Header] = {}
        for model, load in planned.loads.items():
            stored = self.stored_name(model, load)
            if stored is not None:
                if is_embeddings_for_head(load, stored):
                    raise CheckpointError(
                        f"{model}: tensor {planned.name} is missing, and its config.json does not "
                        f"tie it to the embeddings."
                    )
                headers[model] = self.checkpoint(model, load).header(stored)
                _refuse_quantised(model, stored, headers[model])
            elif is_convertible(load):
                self._check_all_linears(model, self.checkpoint(model, load))
            elif planned.optional:
                self._accept_missing(planned, model)
            else:
                raise CheckpointError(f"{model}: tensor {planned.name} is missing.")
        base = headers.get(planned.base)
        if base is not None:
            for model, header in headers.items():
                _refuse_other_shape(planned, model, header, base)
        return base

    def _check_all_linears(self, model: ModelReference, checkpoint: Checkpoint) -> None:
        """Look once at all stored linears of a model that packs some of them on load."""
        if model not in self._searched:
            self._searched.add(model)
            for stored in checkpoint.stored():
                header = checkpoint.header(stored)
                if linears_in(stored, header.shape):
                    _refuse_quantised(model, stored, header)

    def _accept_missing(self, planned: PlannedTensor, model: ModelReference) -> None:
        others = [
            other
            for other, load in planned.loads.items()
            if self.stored_name(other, load) is not None
        ]
        if model == planned.base and others:
            raise CheckpointError(
                f"{model}: tensor {planned.name} is missing, but {others[0]} has it; "
                f"without the base's there is no delta."
            )
        if others and model not in self._without:
            self._without.add(model)
            LOG.warning(
                "%s: optional tensor %s is missing; the model takes no part in it, nor in other "
                "optional tensors that it lacks.",
                model,
                planned.name,
            )


def _refuse_moved_layers(planned: PlannedTensor, method: str) -> None:
    for model, load in planned.loads.items():
        name = own_name(load)
        if block_of(name) != block_of(planned.name):
            raise RecipeError(
                f"slices: {name} of {model} would become {planned.name}; {method} "
                f"allocates its density over whole models, so every layer must stay in place."
            )


def _refuse_quantised(model: ModelReference, name: str, header: Header) -> None:
    weight = name.endswith("weight") or linears_in(name, header.shape)
    if weight and header.dtype not in PLAIN_DTYPES:
        raise CheckpointError(
            f"{model}: tensor {name} is quantised ({header.dtype}); allowed are F64, F32, F16 and "
            f"BF16: dequantise the model first."
        )


def _refuse_other_shape(
    planned: PlannedTensor, model: ModelReference, header: Header, base: Header
) -> None:
    if planned.comparable(header.shape) == planned.comparable(base.shape):
        return
    hint = ""
    if planned.vocabulary is not None:
        hint = " With vocabularies that differ, set tokenizer: {source: base} or union."
    raise CheckpointError(
        f"{model}: tensor {planned.name} has shape {list(header.shape)}; that of the "
        f"base model {planned.base} has {list(base.shape)}.{hint}"
    )
