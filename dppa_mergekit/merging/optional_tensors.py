"""Optional tensors that only some models of a merge have, with mergekit's own methods.

mergekit calls a method with the models that have the tensor. Some methods refuse what is left, when
the merge has begun; one leaves the tensor out (task_adapter.py, release 0.1.5). The methods of this
package look for themselves, as they plan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from dppa_mergekit.checkpoints.tensor_loading import (
    checkpoint_of,
    is_convertible,
    possible_names,
)
from dppa_mergekit.errors import first_line
from dppa_mergekit.merging.misfits import Kind, Misfit
from dppa_mergekit.report.phrases import such_as

if TYPE_CHECKING:
    from mergekit.graph import Task
    from mergekit.io.tasks import LoadTensor
    from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask


def find_optional_misfits(tasks: Sequence[Task[object]]) -> list[Misfit]:
    """Return the optional tensors of which a method cannot merge the inputs that are left.

    Args:
        tasks: mergekit's tasks of a merge; every model is in mergekit's cache of loaders.
    """
    from mergekit.io.tasks import SaveTensor

    found: dict[tuple[str, str, Kind], list[str]] = defaultdict(list)
    for task in tasks:
        if not isinstance(task, SaveTensor) or not task.optional:
            continue
        merge: ExecuteMergeMethodTask = task.tensor_task
        absent = [load.model for load in _loads(merge) if not _is_there(load)]
        if not absent:
            continue
        left = [model for model in merge.model_order if model not in absent]
        if judged := _judge(merge, left):
            reason, kind = judged
            found[str(absent[0]), reason, kind].append(task.tensor_name)
    return [
        Misfit(
            model,
            f"{such_as(names, 'optional tensor is missing', 'optional tensors are missing')}, and "
            f"{reason}.",
            kind,
        )
        for (model, reason, kind), names in found.items()
    ]


def _loads(merge: ExecuteMergeMethodTask) -> Iterator[LoadTensor]:
    """Yield the tasks that read the inputs of a merge."""
    gather = merge.gather_tensors
    gather = getattr(gather, "gather_tensors", gather)
    yield from gather.arguments().values()


def _is_there(load: LoadTensor) -> bool:
    stored = set(checkpoint_of(load, load.model).stored())
    return not stored.isdisjoint(possible_names(load)) or is_convertible(load)


def _judge(merge: ExecuteMergeMethodTask, left: Sequence[Hashable]) -> tuple[str, Kind] | None:
    """Return why a tensor cannot be merged or is lost, given the models that have it."""
    from mergekit import merge_methods
    from mergekit.merge_methods.base import OptionalTensorPolicy

    method = merge_methods.get(merge.method_name)
    policy, has_base = method.spec.optional_tensor_policy, merge.base_model in left
    if len(left) == 1 and policy == OptionalTensorPolicy.PASSTHROUGH_SINGLETON:
        return None
    if len(left) == 1 and has_base and policy != OptionalTensorPolicy.ERROR:
        return None
    minimum = method.spec.contract.min_inputs
    if policy == OptionalTensorPolicy.BASE_OR_SKIP and len(left) < minimum:
        return f"{merge.method_name} leaves out what fewer than {minimum} models have", "loss"
    try:
        method.validate_inputs(left, merge.base_model)
    except ValueError as problem:
        return f"{merge.method_name} cannot merge the rest ({first_line(problem)})", "failure"
    return None
