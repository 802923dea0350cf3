"""How mergekit's plan is seen: every tensor of a merge, before the first one is read.

mergekit hands a merge method one output tensor at a time, with the output's name only. Dynamic
pruning needs the whole model, each tensor as the merge will see it (cast to the recipe's dtype,
with aliases and tied names resolved and experts packed), and it must know whether `slices:` move
layers. All of that is in the task that mergekit makes for every tensor while it plans, and that
task calls the method's `validate_inputs`. So the plan is gathered from those calls, and found
again when the task calls the method to merge: the calling task is looked up in the frame above.
Read off release 0.1.5: mergekit/plan.py, merge_methods/task_adapter.py and
scripts/merge_raw_pytorch.py.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from dppa_mergekit.combination.combination import Listener
from dppa_mergekit.errors import RecipeError
from dppa_mergekit.merging.input_models import check_dtype, check_fine_tuned
from dppa_mergekit.merging.merge_plan import Plan
from dppa_mergekit.merging.planned_tensor import PlannedTensor

_PLANNER = ("mergekit.plan", "normalize_config")
_RAW_PLANNER = ("mergekit.scripts.merge_raw_pytorch", "plan_flat_merge")
_TASK = ("mergekit.merge_methods.task_adapter", "validate_configured_inputs")
_EXECUTION = ("mergekit.merge_methods.task_adapter", "execute")
_CALL = ("mergekit.merge_methods.base", "__call__")


class _Gathering(threading.local):
    """Method name -> the plan that this thread is gathering, and what plans it; who listens to it.

    The planner is held weakly: it holds its tasks, and those keep their entries in _PLANS alive.
    """

    def __init__(self) -> None:
        self.plans: dict[str, tuple[weakref.ref[object], Plan]] = {}
        self.listener: Listener | None = None


_GATHERING = _Gathering()
_PLANS: dict[int, Plan] = {}
"""The identity of a task -> its plan, for as long as the task lives."""


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Let merges that this thread plans meanwhile tell a listener what they combine."""
    before, _GATHERING.listener = _GATHERING.listener, listener
    try:
        yield
    finally:
        _GATHERING.listener = before


def observe(frame: FrameType, method: str) -> None:
    """Learn what can be learnt from a call of `validate_inputs` while mergekit plans.

    Args:
        frame: Of the caller.
        method: The merge method's name.

    Raises:
        RecipeError: The recipe as a whole, or for one tensor, cannot be merged.
        CheckpointError: A header shows that a tensor cannot be merged.
    """
    place, caller = _place(frame), frame.f_locals.get("self")
    planner, plan = _GATHERING.plans.get(method, (None, None))
    if place == _PLANNER and caller is not None and (planner is None or planner() is not caller):
        models = caller.config.referenced_models()
        check_fine_tuned(method, models, caller.config.base_model)
        plan = _new_plan(method, caller.config, caller.options)
        _GATHERING.plans[method] = weakref.ref(caller), plan
    elif place == _RAW_PLANNER:
        config = frame.f_locals["config"]
        plan = _new_plan(method, config, frame.f_locals["options"])
        _GATHERING.plans[method] = weakref.ref(config), plan
    elif place == _TASK and plan is not None and caller is not None:
        plan.add(PlannedTensor.of(caller))
        _PLANS[id(caller)] = plan
        weakref.finalize(caller, _PLANS.pop, id(caller), None)


def gathered(method: str) -> Plan:
    """The plan of a method's merge that this thread planned last."""
    _, plan = _GATHERING.plans[method]
    return plan


def is_planning(frame: FrameType) -> bool:
    """Whether the caller is mergekit's planner or a task that it makes, or runs."""
    return _place(frame) in (_PLANNER, _TASK, _EXECUTION)


def is_execution(frame: FrameType) -> bool:
    """Whether the caller is a task of mergekit's that runs."""
    return _place(frame) == _EXECUTION


def plan_of(frame: FrameType) -> Plan | None:
    """The plan of the task that calls a method to merge; None if it is called from Python.

    Raises:
        RecipeError: The task was not seen when it was planned, or the caller is neither.
    """
    if _place(frame) == _CALL:
        return None
    plan = _PLANS.get(id(frame.f_locals.get("self")))
    if plan is None:
        raise RecipeError(
            "dppa-mergekit did not see mergekit plan this task: it is a copy, or mergekit is not "
            "of a release that is supported (0.1.5)."
        )
    return plan


def _place(frame: FrameType) -> tuple[object, str]:
    return frame.f_globals.get("__name__"), frame.f_code.co_name


def _new_plan(method: str, config: object, options: object) -> Plan:
    dtype, out_dtype = getattr(config, "dtype", None), getattr(config, "out_dtype", None)
    check_dtype("dtype", dtype)
    check_dtype("out_dtype", out_dtype)
    output_dtype = None if out_dtype is None else getattr(torch, out_dtype.removeprefix("torch."))
    quiet = bool(getattr(options, "quiet", False))
    return Plan(method, quiet, output_dtype, _GATHERING.listener)
