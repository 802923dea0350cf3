"""Finds mergekit's plan, every tensor of a merge, before the first one is read.

mergekit hands a merge method one output tensor at a time, with the output's name only. Dynamic
pruning needs the whole model, each tensor as the merge will see it (cast to the recipe's dtype,
with aliases and tied names resolved and experts packed), and it must know whether `slices:` move
layers. All of that is in the task that mergekit makes for every tensor while it plans, and that
task calls the method's `validate_inputs`.

mergekit 0.1.5 passes neither planner nor task to the method, so this module, and no other, looks
for them in the frames of the callers: the nearest frame of a known function is searched, however
deep. Known functions were read off release 0.1.5: mergekit/plan.py, merge_methods/task_adapter.py,
merge_methods/base.py and scripts/merge_raw_pytorch.py. A task joins the plan of the planner that is
making it, so a task that is made by hand joins none.
"""

import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from types import FrameType

import torch

from dppa_mergekit.combination.contribution import Listener
from dppa_mergekit.errors import RecipeError
from dppa_mergekit.merging.input_models import check_device, check_dtype, check_fine_tuned
from dppa_mergekit.merging.merge_plan import Plan
from dppa_mergekit.merging.method import Method
from dppa_mergekit.merging.misfits import Misfit, find_misfits, refuse_misfits
from dppa_mergekit.merging.planned_tensor import PlannedTensor

_PLANNER_MODULE = "mergekit.plan"


class Caller(Enum):
    """Who calls a method of this package: (module, function) of mergekit, or user code."""

    PLANNER = (_PLANNER_MODULE, "normalize_config")
    RAW_PLANNER = ("mergekit.scripts.merge_raw_pytorch", "plan_flat_merge")
    TASK = ("mergekit.merge_methods.task_adapter", "validate_configured_inputs")
    EXECUTION = ("mergekit.merge_methods.task_adapter", "execute")
    CALL = ("mergekit.merge_methods.base", "__call__")
    PYTHON = ("", "")


_VALIDATING = (
    Caller.PLANNER,
    Caller.RAW_PLANNER,
    Caller.TASK,
    Caller.EXECUTION,
    Caller.CALL,
)
"""The callers of `validate_inputs`; a call from Python ends the search for mergekit's own."""


_PLAN_OF_TASK: dict[int, Plan] = {}
"""Identity of a task -> its plan, for as long as the task lives."""

_PLAN_OF_PLANNER: dict[int, Plan] = {}
"""Identity of a planner, or of the configuration of a raw merge -> the plan that it makes.

mergekit 0.1.5 caches a method of its planner with the planner itself (`_model_arch`, 128 entries),
so planners outlive their merge. The entry of a merge that has ended goes when the next one begins;
that of a dry run or a failed merge goes with its planner.
"""


class _Listening(threading.local):
    """The listener of the merges that this thread plans."""

    listener: Listener | None = None


_LISTENING = _Listening()


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """While open, merges that this thread plans call a listener with all that they combine."""
    before, _LISTENING.listener = _LISTENING.listener, listener
    try:
        yield
    finally:
        _LISTENING.listener = before


def calling_function() -> Caller:
    """The caller of `validate_inputs`."""
    return _nearest(*_VALIDATING)[0]


def observe_planning(method: Method) -> None:
    """Gather what a call of `validate_inputs` shows of mergekit's plan.

    Args:
        method: The merge method that was called.

    Raises:
        RecipeError: The recipe as a whole, or for one tensor, cannot be merged.
        CheckpointError: A header shows that a tensor cannot be merged, or tensors would be lost.
    """
    caller, frame = _nearest(*_VALIDATING)
    if frame is None:
        return
    if caller is Caller.PLANNER:
        planner = frame.f_locals["self"]
        if id(planner) not in _PLAN_OF_PLANNER:
            config = planner.config
            check_fine_tuned(method.name, config.referenced_models(), config.base_model)
            check_device(str(planner.options.device))
            losses = refuse_misfits(find_misfits(planner))
            _begin(planner, method, config, planner.options, losses)
    elif caller is Caller.RAW_PLANNER:
        config = frame.f_locals["config"]
        _begin(config, method, config, frame.f_locals["options"])
    elif caller is Caller.TASK:
        task, plan = frame.f_locals["self"], _plan_in_the_making(frame)
        if plan is not None:
            plan.add(PlannedTensor.of(task, method))
            _PLAN_OF_TASK[id(task)] = plan
            weakref.finalize(task, _PLAN_OF_TASK.pop, id(task), None)


def plan_of_caller() -> Plan | None:
    """The plan of the task that calls a method to merge; None if it is called from Python.

    Raises:
        RecipeError: The task is not of a plan that was seen.
    """
    caller, frame = _nearest(Caller.EXECUTION, Caller.CALL)
    if caller is Caller.CALL:
        return None
    plan = None if frame is None else _PLAN_OF_TASK.get(id(frame.f_locals["self"]))
    if plan is None:
        raise RecipeError(
            "dppa-mergekit did not see mergekit plan this task: it is a copy, it was made by hand, "
            "or mergekit is not of a release that is supported (0.1.5)."
        )
    return plan


def plan_of_planner(planner: object) -> Plan | None:
    """The plan that a planner has made; None for mergekit's own methods."""
    return _PLAN_OF_PLANNER.get(id(planner))


def _begin(
    owner: object,
    method: Method,
    config: object,
    options: object,
    losses: Sequence[Misfit] = (),
) -> None:
    """Begin the plan of a planner, or of the configuration of a raw merge."""
    for key in [key for key, plan in list(_PLAN_OF_PLANNER.items()) if plan.has_ended]:
        _PLAN_OF_PLANNER.pop(key, None)
    dtype, out_dtype = getattr(config, "dtype", None), getattr(config, "out_dtype", None)
    check_dtype("dtype", dtype)
    check_dtype("out_dtype", out_dtype)
    output_dtype = None if out_dtype is None else getattr(torch, out_dtype)
    quiet = bool(getattr(options, "quiet", False))
    _PLAN_OF_PLANNER[id(owner)] = Plan(method, quiet, output_dtype, _LISTENING.listener, losses)
    weakref.finalize(owner, _PLAN_OF_PLANNER.pop, id(owner), None)


def _plan_in_the_making(frame: FrameType | None) -> Plan | None:
    """The plan of the planner in whose frames a task is being made."""
    while frame is not None:
        owner: object = None
        if frame.f_globals.get("__name__") == _PLANNER_MODULE:
            owner = frame.f_locals.get("self")
        elif _function(frame) == Caller.RAW_PLANNER.value:
            owner = frame.f_locals["config"]
        plan = None if owner is None else _PLAN_OF_PLANNER.get(id(owner))
        if plan is not None:
            return plan
        frame = frame.f_back
    return None


def _nearest(*callers: Caller) -> tuple[Caller, FrameType | None]:
    """The nearest of some callers, and its frame; user code has none."""
    functions = {caller.value: caller for caller in callers}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = functions.get(_function(frame))
        if caller is not None:
            return caller, frame
        frame = frame.f_back
    return Caller.PYTHON, None


def _function(frame: FrameType) -> tuple[str, str]:
    return str(frame.f_globals.get("__name__")), frame.f_code.co_name
