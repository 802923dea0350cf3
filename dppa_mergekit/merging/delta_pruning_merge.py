"""The merge methods that mergekit's users name in a recipe: rows of one table, one class."""

import logging
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from mergekit.merge_methods.base import (
    BasePolicy,
    BatchOptions,
    GroupMergeMethod,
    InputContract,
    MergeMethodSpec,
    ParameterScope,
    ParameterSpec,
    TensorEntry,
    TensorGroup,
)
from mergekit.merge_methods.dtype import align_dtype

from dppa_mergekit import parameters as recipe
from dppa_mergekit.allocation.density import DynamicPruning
from dppa_mergekit.allocation.measurement import TensorSource
from dppa_mergekit.combination.combination import Combination, Combined, Contribution, Listener
from dppa_mergekit.deltas.delta import Delta, linear_deltas
from dppa_mergekit.errors import CheckpointError, ParameterError, RecipeError
from dppa_mergekit.merging.input_models import check_fine_tuned, check_models
from dppa_mergekit.merging.mergekit_hooks import is_execution, is_planning, observe, plan_of
from dppa_mergekit.merging.model_allocation import Allocation
from dppa_mergekit.merging.thresholds import Thresholds
from dppa_mergekit.method_table import Variant
from dppa_mergekit.sparsification.amplification import PartitionAmplification, Pruning
from dppa_mergekit.tensor_names import Linear, linears_alone, linears_in

LOG = logging.getLogger(__name__)

Bound = Mapping[str, object]
"""One tensor's parameters as mergekit binds them: shared values, and per-model mappings."""


@dataclass(frozen=True)
class CheckedParameter(ParameterSpec):  # type: ignore[misc]
    """mergekit's parameter specification, with this package's checks and sentences."""

    parameter: recipe.Parameter | None = None

    @property
    def required(self) -> bool:
        """Never, to mergekit: this package says itself what is missing."""
        return False

    def validate(self, value: object) -> object:
        """The value as the method uses it. Raises ParameterError where it is not allowed."""
        # Of a missing value, those who know the model and the tensor tell better.
        if self.parameter is None or value is recipe.REQUIRED:
            return value
        return self.parameter.check(value)


class DeltaPruningMerge(GroupMergeMethod):  # type: ignore[misc]
    """Prune every model's delta, amplify what is left, and add the weighted sum to the base.

    Under mergekit's commands and `merge_state_dicts` the density is allocated over whole models.
    `merge_tensors` hands over one tensor without its model, so that tensor gets its plain density,
    as does the only floating-point tensor of a state dict.
    Results carry no gradients.
    """

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.spec = MergeMethodSpec(
            name=variant.name,
            parameters=tuple(_specification(each) for each in variant.parameters),
            contract=InputContract(base=BasePolicy.REQUIRED),
            pretty_name=variant.pretty_name,
            reference_url="https://arxiv.org/abs/2403.02799",
        )

    def validate_inputs(
        self,
        input_ids: Sequence[Hashable],
        base_id: Hashable | None = None,
        *,
        group_name: str | None = None,
    ) -> None:
        """Check the models of a merge, and gather mergekit's plan from whoever calls.

        Raises:
            RecipeError: There is no base model, nothing but it, or one model twice.
            CheckpointError: A header shows that a tensor cannot be merged.
        """
        caller = sys._getframe(1)
        if not is_execution(caller):
            check_models(self.variant.name, input_ids, base_id, group_name)
        if not is_planning(caller):
            # Of a recipe's slices, and so of its tensors, some may be the base's alone.
            check_fine_tuned(self.variant.name, input_ids, base_id)
        observe(caller, self.variant.name)
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
        # The frames above: mergekit's _execute_resolved, and what calls that.
        planned = plan_of(sys._getframe(2))
        allocation = (
            self._allocation_in_memory(groups, parameters, input_dtypes)
            if planned is None
            else planned.allocation(self.allocated_by)
        )
        allocation.prepare()
        thresholds = Thresholds() if planned is None else planned.thresholds(allocation)
        merged = tuple(
            self._merge(
                align_dtype(group, dtype),
                bound,
                allocation,
                thresholds,
                alone=planned is None and len(groups) == 1,
                out_dtype=out_dtype,
                final_dtype=None if planned is None else planned.output_dtype,
                listener=None if planned is None else planned.listener,
            )
            for group, bound, dtype in zip(groups, parameters, input_dtypes, strict=True)
        )
        if planned is not None:
            planned.ended(map(_name, groups))
        return merged

    def merge_group(self, group: TensorGroup, /, **parameters: object) -> torch.Tensor:
        """Merge one tensor that comes without its model, at its plain density."""
        merged: torch.Tensor = self((group,), parameters=parameters)[0]
        return merged

    def _allocation_in_memory(
        self,
        groups: Sequence[TensorGroup],
        parameters: Sequence[Bound],
        input_dtypes: Sequence[torch.dtype | None],
    ) -> Allocation:
        """The allocation over tensors that are at hand already."""
        densities: dict[Hashable, dict[str, float]] = {}
        sources = []
        for group, bound, dtype in zip(groups, parameters, input_dtypes, strict=True):
            for entry in group.non_base:
                name = _name(group)
                densities.setdefault(entry.id, {})[name] = _number(bound, "density", entry.id)
            sources.append(_source_in_memory(group, dtype, alone=len(groups) == 1))
        multiples = [self.allocated_by(bound).multiples for bound in parameters]
        return Allocation(sources, densities, [each for each in multiples if each is not None])

    def _merge(
        self,
        group: TensorGroup,
        bound: Bound,
        allocation: Allocation,
        thresholds: Thresholds,
        *,
        alone: bool,
        out_dtype: torch.dtype | None,
        final_dtype: torch.dtype | None,
        listener: Listener | None,
    ) -> torch.Tensor:
        """The merged tensor of one group, in the base's dtype or `out_dtype`."""
        name, base = _name(group), _base_of(group).tensor.detach()
        if not base.is_floating_point():
            raise CheckpointError(
                f"Tensor {name} is {str(base.dtype).removeprefix('torch.')}; allowed are "
                f"floating-point tensors."
            )
        held = _linears_of(group, alone, base.shape)
        dtype = base.dtype if out_dtype is None else out_dtype
        if not group.non_base or base.numel() == 0:
            return torch.clone(base).to(dtype=dtype)
        merged = torch.empty(base.numel(), dtype=dtype, device=base.device)
        flat = base.reshape(-1)
        combination = Combination(
            self.variant.consensus, bool(bound["normalize"]), _number(bound, "lambda")
        )
        deltas = {entry.id: linear_deltas(base, entry.tensor, held) for entry in group.non_base}
        dtypes = (dtype, final_dtype or dtype)
        # The sum itself is made in the widest dtype of the deltas.
        summed = max(
            (each.dtype for of_model in deltas.values() for each in of_model), key=_largest
        )
        narrowest = min(dtypes[1], dtype, summed, key=_largest)
        size = base.numel() // max(1, held)
        overflow = False
        for expert in range(max(1, held)):
            part = slice(expert * size, (expert + 1) * size)
            linear = Linear(name, expert)
            prunings = {
                model: self._pruning(
                    model,
                    each[expert],
                    linear,
                    bound,
                    allocation,
                    pruned=held > 0,
                    apart=listener is not None,
                )
                for model, each in deltas.items()
            }
            contributions = [
                Contribution(pruned, _number(bound, "weight", model))
                for model, pruned in zip(prunings, thresholds.prune(linear, prunings), strict=True)
            ]
            overflow |= combination.merge(
                flat[part], contributions, merged[part], _largest(narrowest)
            )
            if listener is not None:
                named = dict(zip(map(str, deltas), contributions, strict=True))
                listener(Combined(name, part, combination, named, dtypes))
        if overflow:
            LOG.warning(
                "Tensor %s: the sum is too large for %s; what does not "
                "fit becomes infinity or NaN.",
                name,
                str(narrowest).removeprefix("torch."),
            )
        return merged.reshape(base.shape)

    def _pruning(
        self,
        model: Hashable,
        delta: Delta,
        linear: Linear,
        bound: Bound,
        allocation: Allocation,
        *,
        pruned: bool,
        apart: bool,
    ) -> Pruning:
        """How a model's delta of one linear, or of one dense tensor, is pruned and amplified."""
        if not pruned:
            dense = _number(bound, "amplify_dense", model) if self.variant.amplified else 1.0
            return Pruning.none(delta, dense)
        density = _number(bound, "density", model)
        by = self.allocated_by(bound)
        sparsification = PartitionAmplification(
            {rate: _number(bound, f"amplify_{rate}", model) for rate in recipe.RATES}
            if self.variant.amplified
            else {},
            self.variant.selection,
            _seed(bound),
        )
        counts = sparsification.counts(
            density, lambda share: allocation.kept(model, by, share)[linear], apart
        )
        key = (str(model), linear.tensor, str(linear.expert))
        return sparsification.pruning(delta, counts, key, density)

    def allocated_by(self, bound: Bound) -> DynamicPruning:
        """How linears are pruned under a tensor's shared parameters."""
        if not self.variant.levels:
            return DynamicPruning(max_fluctuation=0.0, levels=())
        block_multiple = bound["block_significance_multiple"]
        return DynamicPruning(
            _number(bound, "max_fluctuation"),
            "count" if bound["significance"] == "count" else "magnitude",
            _number(bound, "significance_multiple"),
            None if block_multiple is None else _number(bound, "block_significance_multiple"),
            self.variant.levels,
        )


def _specification(parameter: recipe.Parameter) -> CheckedParameter:
    kinds = {recipe.Switch: bool, recipe.Choice: str}
    return CheckedParameter(
        parameter.name,
        kinds.get(type(parameter), float),
        ParameterScope.NON_BASE if parameter.per_model else ParameterScope.SHARED,
        parameter.default,
        parameter.sentence,
        parameter=parameter,
    )


def _name(group: TensorGroup) -> str:
    return group.metadata.name or "of no name"


def _base_of(group: TensorGroup) -> TensorEntry:
    if group.base is None:
        raise RecipeError(f"Tensor {_name(group)} has no base model's among its inputs.")
    return group.base


def _largest(dtype: torch.dtype) -> float:
    """The largest number of a dtype."""
    return float(torch.finfo(dtype).max)


def _linears_of(group: TensorGroup, alone: bool, shape: Sequence[int]) -> int:
    """How many linears the group's tensor holds."""
    vocabulary = group.metadata.vocabulary_axis is not None
    if alone:
        return linears_alone(group.metadata.name, shape, vocabulary=vocabulary)
    return linears_in(_name(group), shape, vocabulary=vocabulary)


def _source_in_memory(group: TensorGroup, dtype: torch.dtype | None, alone: bool) -> TensorSource:
    """A group's tensors as a source of statistics; cast, where they must be, at each visit."""
    return TensorSource(
        _name(group),
        _base_of(group).id,
        lambda: {each.id: each.tensor for each in align_dtype(group, dtype).entries},
        lambda shape: _linears_of(group, alone, shape),
    )


def _number(bound: Bound, name: str, model: Hashable = None) -> float:
    """A numeric parameter's bound value: shared, or a model's own."""
    value = bound[name]
    if isinstance(value, Mapping):
        value = value[model]
    if value is recipe.REQUIRED:
        raise ParameterError(f"{name} is missing for {model}: every fine-tuned model needs one.")
    if not isinstance(value, (int, float)):
        raise TypeError(f"{name} is bound to {value!r}, not a number")
    return float(value)


def _seed(bound: Bound) -> int:
    value = bound.get("seed", 0)
    return value if isinstance(value, int) else 0
