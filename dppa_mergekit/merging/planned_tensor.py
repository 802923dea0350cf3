"""One tensor that mergekit plans to merge: where its inputs are, and its parameters."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dppa_mergekit.checkpoints.tensor_loading import read
from dppa_mergekit.errors import RecipeError
from dppa_mergekit.merging.method import Method
from dppa_mergekit.merging.tensor_parameters import TensorParameters, resolve_parameters
from dppa_mergekit.parameters import REQUIRED, WEIGHT
from dppa_mergekit.tensor_names import linears_in

if TYPE_CHECKING:
    from mergekit.common import ModelReference
    from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask

    from dppa_mergekit.checkpoints.tensor_loading import Load


@dataclass(frozen=True)
class PlannedTensor:
    """One output tensor: where its inputs are, and its parameters.

    Attributes:
        name: Name of the output.
        base: The base model.
        loads: Model -> mergekit's task that reads its tensor; the base is among them.
        vocabulary: The axis that is indexed by tokens, if one is.
        optional: Whether a model may lack it.
        aligned: Whether mergekit aligns the vocabularies before the method is called.
        parameters: Its parameters, resolved.
    """

    name: str
    base: ModelReference
    loads: Mapping[ModelReference, Load]
    vocabulary: int | None
    optional: bool
    aligned: bool
    parameters: TensorParameters

    @property
    def models(self) -> list[ModelReference]:
        """The fine-tuned models."""
        return [model for model in self.loads if model != self.base]

    @classmethod
    def of(cls, task: ExecuteMergeMethodTask, method: Method) -> PlannedTensor:
        """Read the plan of one tensor off the task that mergekit makes for it.

        Raises:
            RecipeError: mergekit would leave out a model, or a model has no weight for the tensor.
            ParameterError: A parameter's value is not allowed.
        """
        gather = task.gather_tensors
        aligned = hasattr(gather, "gather_tensors")
        if aligned:
            gather = gather.gather_tensors
        raw = not hasattr(gather, "weight_info")
        loads = (
            dict(gather.tensors.items())
            if raw
            else {load.model: load for load in gather.arguments().values()}
        )
        for model in task.model_order:
            if model not in loads:
                raise RecipeError(
                    f"slices: {model} is in a later slice and not in the first, so mergekit would "
                    f"leave it out of {task.output_weight.name}: list it in every slice."
                )
        per_model = {
            model: dict(task.input_parameters[model].items())
            for model in task.model_order
            if model != task.base_model
        }
        for model, values in per_model.items():
            if values[WEIGHT.name] is REQUIRED:
                raise RecipeError(
                    f"{model}: there is no weight for {task.output_weight.name}; every fine-tuned "
                    f"model needs one for every tensor, so filters need a last entry without a "
                    f"filter."
                )
        return cls(
            task.output_weight.name,
            task.base_model,
            {model: loads[model] for model in task.model_order},
            task.output_weight.vocabulary_axis,
            # Under mergekit-pytorch with --tensor-union a model may lack any tensor.
            raw or bool(task.output_weight.optional),
            aligned,
            resolve_parameters(method, dict(task.parameters.items()), per_model),
        )

    def linears(self, shape: Sequence[int]) -> int:
        """The number of linears in the tensor, if it has this shape; 0 if it is dense."""
        return linears_in(self.name, shape, vocabulary=self.vocabulary is not None)

    def plain_parameters(self) -> list[object]:
        """Plain data about the parameters, in an order that is the same in every process."""
        chosen = self.parameters
        models = sorted((str(model), repr(values)) for model, values in chosen.models.items())
        shared = (chosen.allocation, chosen.selection, chosen.combination)
        return [[repr(part) for part in shared], models]

    def load(self) -> dict[Hashable, torch.Tensor]:
        """Read this tensor of every model that has it, as the merge will see it."""
        tensors: dict[Hashable, torch.Tensor] = {}
        for model, load in self.loads.items():
            tensor = read(load, model)
            if tensor is not None:
                tensors[model] = tensor
        # mergekit promotes the inputs to one dtype; only float64 changes what a delta is.
        if any(tensor.dtype == torch.float64 for tensor in tensors.values()):
            return {
                model: tensor.double() if tensor.is_floating_point() else tensor
                for model, tensor in tensors.items()
            }
        return tensors

    def comparable(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The sizes that must equal the base's: all but a vocabulary that mergekit aligns."""
        if self.aligned and self.vocabulary is not None:
            return tuple(size for axis, size in enumerate(shape) if axis != self.vocabulary)
        return tuple(shape)
