"""The merge of one tensor, and the merge-method class that mergekit calls for it.

The way of a delta: delta of the linear, kept counts of its partitions, kept elements, combination,
one cast. `merge_tensor` has all of it; the class around it speaks with mergekit.
"""

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    BatchOptions,
    GroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    TensorEntry,
    TensorGroup,
)
from mergekit.merge_methods.dtype import align_dtype

from dppa_mergekit.allocation.measurement import TensorSource
from dppa_mergekit.combination.contribution import Combined, Contribution, Listener, Place
from dppa_mergekit.deltas.delta import Delta, linear_deltas
from dppa_mergekit.errors import CheckpointError, RecipeError
from dppa_mergekit.merging import mergekit_hooks
from dppa_mergekit.merging.input_models import check_fine_tuned, check_models
from dppa_mergekit.merging.linear_inputs import LinearInputs
from dppa_mergekit.merging.merge_plan import Plan
from dppa_mergekit.merging.mergekit_hooks import Caller
from dppa_mergekit.merging.method import Method
from dppa_mergekit.merging.model_allocation import ModelAllocation
from dppa_mergekit.merging.parameter_specifications import specification
from dppa_mergekit.merging.tensor_parameters import TensorParameters, resolve_parameters
from dppa_mergekit.merging.thresholds import Thresholds
from dppa_mergekit.sparsification.partitions import boundary_densities
from dppa_mergekit.sparsification.pruning import Pruning, plan_pruning
from dppa_mergekit.tensor_names import Linear, linears_alone, linears_in

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """One tensor of the base and of the fine-tuned models.

    Attributes:
        name: Name of the tensor.
        base: Any shape, floating.
        fine_tuned: Model -> its tensor, of the base's shape.
        linears: Number of linears that the tensor holds; 0 if it is dense.
    """

    name: str
    base: torch.Tensor
    fine_tuned: Mapping[Hashable, torch.Tensor]
    linears: int


@dataclass(frozen=True)
class SharedState:
    """The part of a merge that all of its tensors share.

    Attributes:
        allocation: The kept counts of every linear of every model.
        thresholds: The kept sets of all linears.
        inputs: What enters the linears.
        output_dtype: Dtype to which mergekit casts the result later; None if it does not.
        listener: Called with every linear and dense tensor that is combined; its partitions then
            stay separate even where their factors are equal.
    """

    allocation: ModelAllocation
    thresholds: Thresholds
    inputs: LinearInputs
    output_dtype: torch.dtype | None = None
    listener: Listener | None = None


def merge_tensor(
    inputs: Inputs, parameters: TensorParameters, shared: SharedState, dtype: torch.dtype
) -> torch.Tensor:
    """base + the combination of the pruned, amplified deltas (paper 3.4, eq. 6).

    Args:
        inputs: The tensor of all models.
        parameters: Its parameters.
        shared: Allocation and kept sets of the whole merge.
        dtype: Dtype of the result.

    Returns:
        A new tensor of the base's shape.
    """
    base = inputs.base.reshape(-1)
    merged = torch.empty(base.numel(), dtype=dtype, device=base.device)
    deltas = {
        model: linear_deltas(inputs.base, tensor, inputs.linears)
        for model, tensor in inputs.fine_tuned.items()
    }
    dtypes = (dtype, shared.output_dtype or dtype)
    narrowest = _narrowest(dtypes, deltas)
    parts = max(1, inputs.linears)
    size = base.numel() // parts
    paths = {model: own.activations for model, own in parameters.models.items()}
    shape = None
    if parameters.combination.by_inputs:
        shape = shared.inputs.shape(
            inputs.name, inputs.base.shape, inputs.linears, [paths[model] for model in deltas]
        )
    overflow = False
    for expert in range(parts):
        linear = Linear(inputs.name, expert)
        place = Place(inputs.name, slice(expert * size, (expert + 1) * size), shape)
        prunings = {
            model: _plan(of_model[expert], model, linear, inputs.linears > 0, parameters, shared)
            for model, of_model in deltas.items()
        }
        pruned = shared.thresholds.prune(linear, prunings)
        contributions = [
            Contribution(
                pruned[model],
                parameters.models[model].weight,
                str(model),
                shared.inputs.moment(paths[model], linear, shape),
            )
            for model in deltas
        ]
        overflow |= parameters.combination.merge(
            place, base[place.part], contributions, merged[place.part], _largest(narrowest)
        )
        if shared.listener is not None:
            shared.listener(Combined(place, parameters.combination, contributions, dtypes))
    if overflow:
        LOG.warning(
            "Tensor %s: the sum is too large for %s; what does not fit becomes infinity or NaN.",
            inputs.name,
            _dtype_name(narrowest),
        )
    return merged.reshape(inputs.base.shape)


def _plan(
    delta: Delta,
    model: Hashable,
    linear: Linear,
    pruned: bool,
    parameters: TensorParameters,
    shared: SharedState,
) -> Pruning:
    """Plan the pruning of one model's delta: kept counts and factors of its partitions."""
    own = parameters.models[model]
    if not pruned:
        return Pruning.keep_all(delta, own.dense_factor)
    densities = boundary_densities(own.density, own.factors, shared.listener is not None)
    counts = {
        rate: shared.allocation.kept(model, parameters.allocation, density)[linear]
        for rate, density in densities.items()
    }
    name = (str(model), linear.tensor, str(linear.expert))
    return plan_pruning(delta, counts, own.factors, parameters.selection, name, own.density)


def _narrowest(
    dtypes: Sequence[torch.dtype], deltas: Mapping[Hashable, Sequence[Delta]]
) -> torch.dtype:
    """The dtype with the smallest range among those that a result passes through.

    The sum is made in the widest dtype of the deltas.
    """
    summed = max((delta.dtype for of_model in deltas.values() for delta in of_model), key=_largest)
    return min(*dtypes, summed, key=_largest)


def _largest(dtype: torch.dtype) -> float:
    """The largest number of a dtype."""
    return float(torch.finfo(dtype).max)


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class DeltaPruningMerge(GroupMergeMethod):  # type: ignore[misc]
    """A method of the table as a merge method of mergekit (merge_methods/base.py, release 0.1.5).

    Under mergekit's commands and `merge_state_dicts` the density is allocated over whole models.
    `merge_tensors` hands over one tensor without its model, so that tensor gets its plain density,
    as does the only floating-point tensor of a state dict.
    Results carry no gradients.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self.spec = MergeMethodSpec(
            name=method.name,
            parameters=tuple(specification(parameter) for parameter in method.parameters),
            contract=InputContract(base=BasePolicy.REQUIRED),
            pretty_name=method.pretty_name,
            reference_url="https://arxiv.org/abs/2403.02799",
        )

    def validate_inputs(
        self,
        input_ids: Sequence[Hashable],
        base_id: Hashable | None = None,
        *,
        group_name: str | None = None,
    ) -> None:
        """Check the models of a merge, and gather mergekit's plan from the caller.

        Raises:
            RecipeError: There is no base model, nothing but it, or one model twice.
            CheckpointError: A header shows that a tensor cannot be merged.
        """
        caller = mergekit_hooks.calling_function()
        if caller is not Caller.EXECUTION:
            check_models(self.method.name, input_ids, base_id, group_name)
        if caller in (Caller.RAW_PLANNER, Caller.CALL, Caller.PYTHON):
            # Slices of a recipe may be the base's alone, so a recipe is checked as a whole below.
            check_fine_tuned(self.method.name, input_ids, base_id)
        mergekit_hooks.observe_planning(self.method)
        super().validate_inputs(input_ids, base_id, group_name=group_name)

    def _execute(
        self,
        groups: Sequence[TensorGroup],
        parameters: list[dict[str, object]],
        options: BatchOptions,
        *,
        input_dtypes: Sequence[torch.dtype | None],
        out_dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Merge groups: one that mergekit has planned, one by itself, or all of a model's."""
        plan = mergekit_hooks.plan_of_caller()
        resolved = [
            self._resolve(group, bound) for group, bound in zip(groups, parameters, strict=True)
        ]
        is_alone = plan is None and len(groups) == 1
        shared = (
            _state_in_memory(groups, resolved, input_dtypes, is_alone)
            if plan is None
            else _state_of_plan(plan)
        )
        shared.allocation.prepare()
        merged = []
        for group, chosen, dtype in zip(groups, resolved, input_dtypes, strict=True):
            inputs = _inputs_of(align_dtype(group, dtype), is_alone)
            result_dtype = inputs.base.dtype if out_dtype is None else out_dtype
            if not inputs.fine_tuned or inputs.base.numel() == 0:
                merged.append(torch.clone(inputs.base).to(dtype=result_dtype))
            else:
                merged.append(merge_tensor(inputs, chosen, shared, result_dtype))
        if plan is not None:
            plan.end(map(_name, groups))
        return tuple(merged)

    def merge_group(self, group: TensorGroup, /, **parameters: object) -> torch.Tensor:
        """Merge one tensor that comes without its model, at its plain density."""
        merged: torch.Tensor = self((group,), parameters=parameters)[0]
        return merged

    def _resolve(self, group: TensorGroup, bound: Mapping[str, object]) -> TensorParameters:
        """The parameters that mergekit has bound to one tensor: shared values, and by model."""
        per_model: dict[Hashable, dict[str, object]] = {}
        for entry in group.non_base:
            values = per_model.setdefault(entry.id, {})
            for parameter in self.method.parameters:
                of_models = bound[parameter.name]
                if parameter.per_model and isinstance(of_models, Mapping):
                    values[parameter.name] = of_models[entry.id]
        return resolve_parameters(self.method, bound, per_model)


def _state_of_plan(plan: Plan) -> SharedState:
    """The shared state of a merge that mergekit has planned."""
    # Before the thresholds, for which all deltas are read.
    inputs = plan.inputs()
    return SharedState(
        plan.allocation(), plan.thresholds(), inputs, plan.output_dtype, plan.listener
    )


def _state_in_memory(
    groups: Sequence[TensorGroup],
    parameters: Sequence[TensorParameters],
    input_dtypes: Sequence[torch.dtype | None],
    is_alone: bool,
) -> SharedState:
    """The shared state of a merge of tensors that are all at hand."""
    densities: dict[Hashable, dict[str, float]] = {}
    sources = []
    for group, chosen, dtype in zip(groups, parameters, input_dtypes, strict=True):
        for model, own in chosen.models.items():
            densities.setdefault(model, {})[_name(group)] = own.density
        sources.append(_source_in_memory(group, dtype, is_alone))
    multiples = [chosen.allocation.multiples for chosen in parameters]
    wanted = [pair for pair in multiples if pair is not None]
    shapes = {_name(group): tuple(_base_of(group).tensor.shape) for group in groups}
    inputs = LinearInputs(shapes, _tied_names(groups))
    for group, chosen in zip(groups, parameters, strict=True):
        shape = shapes[_name(group)]
        linears = _linears_of(group, is_alone, shape)
        inputs.check(chosen.models, _name(group), shape, linears, {})
    if not is_alone:
        inputs.check_names()
    is_by_magnitude = all(chosen.selection.is_by_magnitude for chosen in parameters)
    allocation = ModelAllocation(sources, densities, wanted, is_by_magnitude)
    return SharedState(allocation, Thresholds(), inputs)


def _tied_names(groups: Sequence[TensorGroup]) -> set[str]:
    """The names of tensors of the base that have the memory of another one."""
    places = [_base_of(group).tensor.data_ptr() for group in groups]
    return {
        _name(group) for group, place in zip(groups, places, strict=True) if places.count(place) > 1
    }


def _source_in_memory(
    group: TensorGroup, dtype: torch.dtype | None, is_alone: bool
) -> TensorSource:
    """A group's tensors as a source of statistics, cast, where they must be, at each visit."""
    return TensorSource(
        _name(group),
        _base_of(group).id,
        lambda: {entry.id: entry.tensor for entry in align_dtype(group, dtype).entries},
        lambda shape: _linears_of(group, is_alone, shape),
    )


def _inputs_of(group: TensorGroup, is_alone: bool) -> Inputs:
    """A group's tensors. Raises CheckpointError if they are not of floating-point numbers."""
    name, base = _name(group), _base_of(group).tensor.detach()
    if not base.is_floating_point():
        raise CheckpointError(
            f"Tensor {name} is {_dtype_name(base.dtype)}; allowed are floating-point tensors."
        )
    fine_tuned = {entry.id: entry.tensor for entry in group.non_base}
    return Inputs(name, base, fine_tuned, _linears_of(group, is_alone, base.shape))


def _name(group: TensorGroup) -> str:
    return group.metadata.name or "of no name"


def _base_of(group: TensorGroup) -> TensorEntry:
    if group.base is None:
        raise RecipeError(f"Tensor {_name(group)} has no base model's among its inputs.")
    return group.base


def _linears_of(group: TensorGroup, is_alone: bool, shape: Sequence[int]) -> int:
    """The number of linears in the group's tensor."""
    vocabulary = group.metadata.vocabulary_axis is not None
    if is_alone:
        return linears_alone(group.metadata.name, shape, vocabulary=vocabulary)
    return linears_in(_name(group), shape, vocabulary=vocabulary)
