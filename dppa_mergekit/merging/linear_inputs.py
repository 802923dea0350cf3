"""What enters the linears of one merge: how they are stored, and the moments of their inputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from dppa_mergekit.checkpoints.headers import Checkpoint
from dppa_mergekit.deltas.linear_shape import LinearShape
from dppa_mergekit.errors import CheckpointError, RecipeError
from dppa_mergekit.merging.tensor_parameters import ModelParameters
from dppa_mergekit.moments.activations_file import ActivationsFile
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.tensor_names import Linear, is_output_head, names_with_inputs_first


@dataclass
class LinearInputs:
    """The activations files of one merge.

    Attributes:
        shapes: Name -> shape of the base's tensors, as far as they are known.
        embeddings: Names of output heads that are embeddings under another name.
    """

    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    embeddings: Collection[str] = ()
    _files: dict[str, ActivationsFile] = field(default_factory=dict)
    _sizes: dict[str, Mapping[Linear, int]] = field(default_factory=dict)
    _checked: set[tuple[str, Hashable]] = field(default_factory=set)

    def check(
        self,
        planned: Mapping[Hashable, ModelParameters],
        name: str,
        shape: Sequence[int] | None,
        linears: int,
        checkpoints: Mapping[Hashable, Checkpoint],
    ) -> None:
        """Refuse files that do not belong to a tensor of the merge.

        Args:
            planned: Fine-tuned model -> its parameters for this tensor.
            name: The name of the tensor.
            shape: The shape of the tensor; None if it is packed on load.
            linears: Number of linears in the tensor.
            checkpoints: Model -> its files; none where they are not known.

        Raises:
            RecipeError: Some models have activations, and others have none.
            CheckpointError: A file cannot be used, or belongs to another model.
        """
        paths = {model: own.activations for model, own in planned.items()}
        missing = [str(model) for model, path in paths.items() if path is None]
        if 0 < len(missing) < len(paths):
            raise RecipeError(
                f"activations: there are none for {missing[0]} ({name}), and some for other "
                f"models; allowed are activations for all models, or for none."
            )
        for model, path in paths.items():
            if path is None:
                continue
            self._check_model(path, model, checkpoints.get(model))
            for expert in range(max(1, linears) if shape is not None else 0):
                entry = self._file(path).entries.get(Linear(name, expert))
                if entry is not None and shape is not None:
                    inputs = shape[-2] if entry[1].inputs_first else shape[-1]
                    self._refuse_size(path, Linear(name, expert), inputs)

    def check_names(self) -> None:
        """Refuse a file that has none of the tensors of `shapes`.

        Raises:
            CheckpointError: There is one.
        """
        for path, file in self._files.items():
            observed = [linear.tensor for linear in file.entries]
            if self.shapes and not self.shapes.keys() & set(observed):
                raise CheckpointError(
                    f"activations: {path} has the inputs of {observed[0]} and others, none of "
                    f"which is merged here: the model's tensors have other names."
                )

    def shape(
        self, name: str, shape: Sequence[int], linears: int, paths: Sequence[str | None]
    ) -> LinearShape | None:
        """The outputs and inputs of a tensor's linears; None for a tensor that stays dense.

        An output head is never pruned, but is combined by its inputs if it is no embedding.

        Args:
            name: The name of the tensor.
            shape: The shape of the tensor.
            linears: Number of linears in the tensor.
            paths: The activations file of each model.
        """
        if len(shape) < 2 or math.prod(shape) != max(1, linears) * shape[-2] * shape[-1]:
            return None
        observed = [self._order(path, name, linears) for path in paths if path is not None]
        orders = [order for order in observed if order is not None]
        is_head = (
            len(shape) == 2
            and name not in self.embeddings
            and (len(orders) == len(paths) or is_output_head(name))
        )
        if not linears and not is_head:
            return None
        inputs_first = orders[0] if orders else name in self._inputs_first
        return LinearShape.of((shape[-2], shape[-1]), inputs_first)

    @cached_property
    def _inputs_first(self) -> set[str]:
        """The tensors that store (inputs, outputs), by the shapes."""
        return names_with_inputs_first(self.shapes)

    def _order(self, path: str, name: str, linears: int) -> bool | None:
        """Whether a tensor is stored as (inputs, outputs), by a file; None if it does not say."""
        entries = self._file(path).entries
        for expert in range(max(1, linears)):
            entry = entries.get(Linear(name, expert))
            if entry is not None:
                return entry[1].inputs_first
        return None

    def moment(
        self, path: str | None, linear: Linear, shape: LinearShape | None
    ) -> SecondMoment | None:
        """The moments of a linear's inputs; None if they were not observed.

        Raises:
            CheckpointError: They are of another number of inputs.
        """
        moment = None if path is None or shape is None else self._file(path).moment(linear)
        if moment is not None and path is not None and shape is not None:
            self._refuse_size(path, linear, shape.inputs)
        return moment

    def _file(self, path: str) -> ActivationsFile:
        if path not in self._files:
            file = ActivationsFile.open(path)
            file.check_content()
            self._sizes[path] = file.sizes()
            self._files[path] = file
        return self._files[path]

    def _check_model(self, path: str, model: Hashable, checkpoint: Checkpoint | None) -> None:
        if (path, model) in self._checked:
            return
        file = self._file(path)
        if checkpoint is not None and checkpoint.weights_digest() != file.observation.weights:
            raise CheckpointError(file.other_weights(model))
        self._checked.add((path, model))

    def _refuse_size(self, path: str, linear: Linear, inputs: int) -> None:
        observed = self._sizes[path][linear]
        if observed != inputs:
            raise CheckpointError(self._file(path).other_size(linear.tensor, observed, inputs))
