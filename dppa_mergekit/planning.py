"""What mergekit plans: every tensor of a merge, seen before the first one is read.

mergekit hands a merge method one output tensor at a time, with the output's name only. Dynamic
pruning needs the whole model, each tensor as the merge will see it (cast to the recipe's dtype,
with aliases and tied names resolved and experts packed), and it must know whether `slices:` move
layers. All of that is in the task that mergekit makes for every tensor while it plans, and that
task calls the method's `validate_inputs`. So the plan is gathered from those calls: the caller is
looked up, once a call, in the frame above. Read off release 0.1.5: mergekit/plan.py,
merge_methods/task_adapter.py, io/tasks.py and scripts/merge_raw_pytorch.py.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from dppa_mergekit.allocation import Allocation
from dppa_mergekit.checkpoints import PLAIN_FLOATS, Checkpoint, Header
from dppa_mergekit.density import DynamicPruning
from dppa_mergekit.errors import CheckpointError, DppaError, RecipeError
from dppa_mergekit.names import block_of, linears_in
from dppa_mergekit.statistics import Progress, TensorSource

if TYPE_CHECKING:
    from mergekit.common import ModelReference
    from mergekit.io.tasks import LoadTensor
    from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
    from mergekit.scripts.merge_raw_pytorch import SimpleLoadTensor

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedTensor:
    """One output tensor: where its inputs are, and the parameters that the recipe gives it.

    Attributes:
        name: The output's name.
        base: The base model.
        loads: Model -> mergekit's task that reads its tensor; the base is among them.
        vocabulary: Whether an axis is indexed by tokens.
        optional: Whether a model may lack it.
        aligned: Whether mergekit aligns the vocabulary before the method is called.
        shared: The shared parameters.
        per_model: Model -> its parameters.
    """

    name: str
    base: ModelReference
    loads: Mapping[ModelReference, LoadTensor | SimpleLoadTensor]
    vocabulary: int | None
    optional: bool
    aligned: bool
    shared: Mapping[str, object]
    per_model: Mapping[ModelReference, Mapping[str, object]]

    @property
    def models(self) -> list[ModelReference]:
        """The fine-tuned models."""
        return [model for model in self.loads if model != self.base]


@dataclass
class Plan:
    """One merge that mergekit has planned, or is planning.

    Attributes:
        method: The merge method's name.
        planner: What plans it; tells one merge from the next.
        quiet: Whether progress bars are off.
        output_dtype: What every output is cast to after the merge; None for the base's own.
        tensors: Output name -> what is planned for it.
    """

    method: str
    planner: object
    quiet: bool = False
    output_dtype: torch.dtype | None = None
    tensors: dict[str, PlannedTensor] = field(default_factory=dict)
    _checkpoints: dict[ModelReference, Checkpoint] = field(default_factory=dict)
    _allocation: Allocation | None = None
    _without: set[ModelReference] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, task: ExecuteMergeMethodTask) -> None:
        """Take in what mergekit plans for one tensor, and check the headers of its inputs.

        Raises:
            RecipeError: The recipe's slices move the layer.
            CheckpointError: A header shows that the inputs cannot be merged.
        """
        planned = _planned(task)
        self._refuse_moved_layers(planned)
        self._check_headers(planned)
        self.tensors[planned.name] = planned

    def allocation(self, pruning: Callable[[Mapping[str, object]], DynamicPruning]) -> Allocation:
        """The allocation of this merge; made once, when all tensors are planned.

        Args:
            pruning: From a tensor's shared parameters, how its linears are pruned.
        """
        with self._lock:
            if self._allocation is None:
                self._allocation = self._new_allocation(pruning)
            return self._allocation

    def _new_allocation(
        self, pruning: Callable[[Mapping[str, object]], DynamicPruning]
    ) -> Allocation:
        densities: dict[Hashable, dict[str, float]] = {}
        for planned in self.tensors.values():
            for model in planned.models:
                density = planned.per_model[model]["density"]
                assert isinstance(density, float)
                densities.setdefault(model, {})[planned.name] = density
        multiples = [pruning(planned.shared).multiples for planned in self.tensors.values()]
        return Allocation(
            [self._source(planned) for planned in self.tensors.values()],
            densities,
            [each for each in multiples if each is not None],
            None if self.quiet else progress_bar,
        )

    def _refuse_moved_layers(self, planned: PlannedTensor) -> None:
        for model, load in planned.loads.items():
            name = _names(load)[0]
            if block_of(name) != block_of(planned.name):
                raise RecipeError(
                    f"slices: {name} of {model} would become {planned.name}; {self.method} "
                    f"allocates its density over whole models, so every layer must stay in place."
                )

    def _check_headers(self, planned: PlannedTensor) -> None:
        headers: dict[ModelReference, Header] = {}
        for model, load in planned.loads.items():
            checkpoint = self._checkpoint(model, load)
            stored = checkpoint.stored_name(_names(load))
            if stored is not None:
                headers[model] = checkpoint.header(stored)
                _refuse_quantised(model, stored, headers[model])
            elif planned.optional:
                self._accept_missing(planned, model)
            elif not _convertible(load):
                raise CheckpointError(f"{model}: tensor {planned.name} is missing.")
        if planned.base not in headers:
            return
        expected = _comparable(headers[planned.base].shape, planned)
        for model, header in headers.items():
            if _comparable(header.shape, planned) != expected:
                hint = ""
                if planned.vocabulary is not None:
                    hint = " With vocabularies that differ, set tokenizer: {source: base} or union."
                raise CheckpointError(
                    f"{model}: tensor {planned.name} has shape {list(header.shape)}; that of the "
                    f"base model {planned.base} has {list(headers[planned.base].shape)}.{hint}"
                )

    def _accept_missing(self, planned: PlannedTensor, model: ModelReference) -> None:
        others = [
            other
            for other, load in planned.loads.items()
            if self._checkpoint(other, load).stored_name(_names(load)) is not None
        ]
        if model == planned.base and others:
            raise CheckpointError(
                f"{model}: tensor {planned.name} is missing, but {others[0]} has it; "
                f"without the base's there is no delta."
            )
        if others and model not in self._without:
            self._without.add(model)
            LOG.warning(
                "%s: optional tensor %s is missing; its delta is taken as zero, as is that of "
                "other optional tensors that it lacks.",
                model,
                planned.name,
            )

    def _checkpoint(self, model: ModelReference, load: LoadTensor | SimpleLoadTensor) -> Checkpoint:
        if model not in self._checkpoints:
            self._checkpoints[model] = Checkpoint(str(model), _loader_index(load))
        return self._checkpoints[model]

    def _source(self, planned: PlannedTensor) -> TensorSource:
        base = planned.loads[planned.base]
        stored = self._checkpoint(planned.base, base).stored_name(_names(base))
        return TensorSource(
            planned.name,
            planned.base,
            lambda: _load(planned),
            lambda shape: linears_in(
                planned.name, shape, vocabulary=planned.vocabulary is not None
            ),
            planned.aligned,
            shard="" if stored is None else self._checkpoints[planned.base].shard_of(stored),
        )


def is_execution(frame: FrameType) -> bool:
    """Whether the caller runs a task of a plan, and no longer plans."""
    return _place(frame) == ("mergekit.merge_methods.task_adapter", "execute")


def _place(frame: FrameType) -> tuple[object, str]:
    return frame.f_globals.get("__name__"), frame.f_code.co_name


def plan_of_caller(frame: FrameType, method: str, current: Plan | None) -> Plan | None:
    """The plan after a call of `validate_inputs`: the current one, a new one, or it with one more.

    Args:
        frame: Of the caller of `validate_inputs`.
        method: The merge method's name.
        current: The plan gathered so far.
    """
    caller = frame.f_locals.get("self")
    place = _place(frame)
    if place == ("mergekit.plan", "normalize_config"):
        if current is not None and current.planner is caller:
            return current
        options, config = getattr(caller, "options", None), getattr(caller, "config", None)
        return Plan(
            method,
            caller,
            quiet=bool(getattr(options, "quiet", False)),
            output_dtype=_dtype(getattr(config, "out_dtype", None)),
        )
    if place == ("mergekit.scripts.merge_raw_pytorch", "plan_flat_merge"):
        options, config = frame.f_locals.get("options"), frame.f_locals.get("config")
        return Plan(
            method,
            frame.f_locals.get("config"),
            quiet=bool(getattr(options, "quiet", False)),
            output_dtype=_dtype(getattr(config, "out_dtype", None)),
        )
    if (
        place == ("mergekit.merge_methods.task_adapter", "validate_configured_inputs")
        and current is not None
        and caller is not None
    ):
        current.add(caller)
    return current


@contextmanager
def progress_bar(total: int) -> Iterator[Progress]:
    """A progress bar on stderr over the tensors of the statistics pass."""
    with tqdm(total=total, desc="Delta statistics", unit="tensor") as bar:
        yield bar


def _planned(task: ExecuteMergeMethodTask) -> PlannedTensor:
    gather = task.gather_tensors
    aligned = not hasattr(gather, "weight_info") and hasattr(gather, "gather_tensors")
    if aligned:
        gather = gather.gather_tensors
    optional = bool(task.output_weight.optional)
    if hasattr(gather, "weight_info"):
        loads = {load.model: load for load in gather.arguments().values()}
        ordered = {model: loads[model] for model in task.model_order}
    else:
        # mergekit-pytorch: with --tensor-union a model may lack any tensor.
        optional = True
        ordered = {model: gather.tensors[model] for model in task.model_order}
    if task.base_model is None:
        raise RecipeError("There is no base model.")
    return PlannedTensor(
        task.output_weight.name,
        task.base_model,
        ordered,
        task.output_weight.vocabulary_axis,
        optional,
        aligned,
        dict(task.parameters.items()),
        {model: dict(values.items()) for model, values in task.input_parameters.items()},
    )


def _names(load: LoadTensor | SimpleLoadTensor) -> list[str]:
    """The names under which a model may store the tensor, its own first."""
    if hasattr(load, "tensor_name"):
        return [load.tensor_name]
    return [load.tensor, *(load.aliases or ()), *(load.tied_names or ())]


def _loader_index(load: LoadTensor | SimpleLoadTensor):  # type: ignore[no-untyped-def]
    if hasattr(load, "tensor_name"):
        from mergekit.scripts.merge_raw_pytorch import SimpleLoaderCache

        return SimpleLoaderCache().get(load.model).index
    from mergekit.io.tasks import LoaderCache

    return LoaderCache().get(load.model).index


def _convertible(load: LoadTensor | SimpleLoadTensor) -> bool:
    """Whether transformers knows conversions for the model's type, as for unstacked experts.

    The conversion itself is tried when the tensor is read, still before anything is written.
    """
    if hasattr(load, "tensor_name"):
        return False
    from mergekit.io.tasks import LoaderCache
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    config = load.model.config(trust_remote_code=LoaderCache().trust_remote_code)
    return bool(get_checkpoint_conversion_mapping(config.model_type))  # type: ignore[no-untyped-call]


def _load(planned: PlannedTensor) -> dict[Hashable, torch.Tensor]:
    """Read a tensor of every model as the merge will see it, but always on the CPU."""
    tensors: dict[Hashable, torch.Tensor] = {}
    for model, load in planned.loads.items():
        try:
            tensor = load.model_copy(update={"device": None}).execute()
        except DppaError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"{model}: tensor {planned.name} cannot be read ({type(error).__name__}: {error})."
            ) from error
        if tensor is not None:
            tensors[model] = tensor
    if any(tensor.dtype == torch.float64 for tensor in tensors.values()):
        return {
            model: tensor.double() if tensor.is_floating_point() else tensor
            for model, tensor in tensors.items()
        }
    return tensors


def _comparable(shape: Sequence[int], planned: PlannedTensor) -> tuple[int, ...]:
    """The shape as far as it must be the base's: without a vocabulary that mergekit aligns."""
    if planned.aligned and planned.vocabulary is not None:
        return tuple(size for axis, size in enumerate(shape) if axis != planned.vocabulary)
    return tuple(shape)


def _refuse_quantised(model: ModelReference, name: str, header: Header) -> None:
    weight = name.endswith("weight") or linears_in(name, header.shape)
    if weight and header.dtype not in PLAIN_FLOATS:
        raise CheckpointError(
            f"{model}: tensor {name} is quantised ({header.dtype}); allowed are "
            f"{', '.join(sorted(PLAIN_FLOATS))}: dequantise the model first."
        )


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    dtype = getattr(torch, name.removeprefix("torch."), None)
    return dtype if isinstance(dtype, torch.dtype) else None
