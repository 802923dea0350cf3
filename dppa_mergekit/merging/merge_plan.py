"""One merge: every tensor that mergekit plans, and the allocation and kept sets that they share.

Headers are checked as tensors are added, so before the first one is read and before the output
folder exists.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from dppa_mergekit.allocation.measurement import TensorSource
from dppa_mergekit.checkpoints.headers import FLOATING
from dppa_mergekit.checkpoints.tensor_loading import is_tied, read
from dppa_mergekit.combination.contribution import Listener
from dppa_mergekit.merging.cache_entries import (
    delta_dependencies,
    kept_set_entries,
    statistics_entries,
)
from dppa_mergekit.merging.header_checks import InputHeaders
from dppa_mergekit.merging.linear_inputs import LinearInputs
from dppa_mergekit.merging.method import Method
from dppa_mergekit.merging.misfits import Misfit
from dppa_mergekit.merging.model_allocation import ModelAllocation
from dppa_mergekit.merging.planned_tensor import PlannedTensor
from dppa_mergekit.merging.thresholds import Thresholds
from dppa_mergekit.parameters import ACTIVATIONS
from dppa_mergekit.report.progress import progress_bar
from dppa_mergekit.tensor_names import is_output_head, natural_order


@dataclass
class Plan:
    """One merge that mergekit has planned, or is planning.

    Attributes:
        method: The merge method.
        quiet: Whether progress bars are off.
        output_dtype: Dtype of all outputs after the merge; None for the inputs' own.
        listener: Called with every linear and dense tensor that is combined; its partitions then
            stay separate even where their factors are equal.
        losses: The tensors that it loses, as the environment allows.
        tensors: Output name -> what is planned for it.
        headers: Headers of the inputs.
        has_ended: Whether all tensors are merged.
    """

    method: Method
    quiet: bool = False
    output_dtype: torch.dtype | None = None
    listener: Listener | None = None
    losses: Sequence[Misfit] = ()
    tensors: dict[str, PlannedTensor] = field(default_factory=dict)
    headers: InputHeaders = field(default_factory=InputHeaders)
    has_ended: bool = False
    _allocation: ModelAllocation | None = None
    _thresholds: Thresholds | None = None
    _inputs: LinearInputs = field(default_factory=LinearInputs)
    _awaited: set[str] = field(default_factory=set)
    _merged: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, planned: PlannedTensor) -> None:
        """Add the plan of one tensor, and check the headers of its inputs.

        Raises:
            RecipeError: The recipe's slices move the layer.
            CheckpointError: A header shows that the inputs cannot be merged.
        """
        base = self.headers.check(planned, self.method.name)
        shape = None if base is None else base.shape
        self._inputs.check(
            planned.parameters.models,
            planned.name,
            shape,
            planned.linears(shape or ()),
            self.headers.checkpoints,
        )
        self.tensors[planned.name] = planned
        # mergekit copies a base tensor of integers and does not call the method.
        if base is None or base.dtype in FLOATING:
            self._awaited.add(planned.name)

    def allocation(self) -> ModelAllocation:
        """The allocation of this merge, made once, when all tensors are planned."""
        with self._lock:
            if self._allocation is None:
                self._allocation = self._new_allocation()
            return self._allocation

    def thresholds(self) -> Thresholds:
        """The kept sets of this merge's linears."""
        allocation = self.allocation()
        with self._lock:
            if self._thresholds is None:
                entries = kept_set_entries(lambda: self._dependencies)
                self._thresholds = Thresholds(entries, allocation.linears)
            return self._thresholds

    def inputs(self) -> LinearInputs:
        """What enters this merge's linears; all tensors are planned.

        Raises:
            CheckpointError: An activations file has none of the tensors.
        """
        with self._lock:
            if not self._inputs.shapes and ACTIVATIONS in self.method.parameters:
                loads = {
                    name: planned.loads[planned.base] for name, planned in self.tensors.items()
                }
                headers = {
                    name: self.headers.header(self.tensors[name].base, load)
                    for name, load in loads.items()
                }
                self._inputs.shapes = {
                    name: header.shape for name, header in headers.items() if header is not None
                }
                self._inputs.embeddings = {
                    name for name, load in loads.items() if is_output_head(name) and is_tied(load)
                }
                self._inputs.check_names()
            return self._inputs

    def end(self, names: Iterable[str]) -> None:
        """Note that tensors are merged; with the last one, let go of what merging needed."""
        with self._lock:
            self._merged.update(names)
            if self._merged >= self._awaited:
                self._merged.clear()
                self._allocation = self._thresholds = self.listener = None
                self._inputs = LinearInputs()
                self.has_ended = True

    def fingerprint(self) -> list[object]:
        """Plain data that differs where deltas or parameters do."""
        return [
            self.method.name,
            [[str(model), content] for model, content in self._dependencies.items()],
            [[planned.name, planned.plain_parameters()] for planned in self.by_name()],
        ]

    def shape_of(self, planned: PlannedTensor) -> tuple[int, ...]:
        """The shape of the base's tensor, from its header; read if it is packed on load."""
        load = planned.loads[planned.base]
        header = self.headers.header(planned.base, load)
        if header is not None:
            return header.shape
        base = read(load, planned.base)
        return () if base is None else tuple(base.shape)

    def by_name(self) -> list[PlannedTensor]:
        """The tensors by name: in the same order in every process, unlike mergekit-pytorch's."""
        return [self.tensors[name] for name in sorted(self.tensors)]

    def in_order_of_shards(self) -> list[PlannedTensor]:
        """The tensors in the order of the base's files, and block by block within a file."""
        return sorted(
            self.tensors.values(),
            key=lambda planned: (
                natural_order(self._source(planned).shard),
                natural_order(planned.name),
            ),
        )

    def _new_allocation(self) -> ModelAllocation:
        densities: dict[Hashable, dict[str, float]] = {}
        for planned in self.tensors.values():
            for model, parameters in planned.parameters.models.items():
                densities.setdefault(model, {})[planned.name] = parameters.density
        pairs = [planned.parameters.allocation.multiples for planned in self.tensors.values()]
        multiples = [pair for pair in dict.fromkeys(pairs) if pair is not None]
        return ModelAllocation(
            [self._source(planned) for planned in self.by_name()],
            densities,
            multiples,
            all(planned.parameters.selection.is_by_magnitude for planned in self.tensors.values()),
            None if self.quiet else progress_bar,
            statistics_entries(lambda: self._dependencies, multiples),
        )

    @cached_property
    def _dependencies(self) -> dict[Hashable, list[object]]:
        """Model -> plain data that differs where its deltas do: files, tensors, dtypes."""
        return delta_dependencies(self.by_name(), self.headers)

    def _source(self, planned: PlannedTensor) -> TensorSource:
        stored = {
            model: (self.headers.checkpoint(model, load), name)
            for model, load in planned.loads.items()
            if (name := self.headers.stored_name(model, load)) is not None
        }

        def read_ahead() -> None:
            for checkpoint, name in stored.values():
                checkpoint.read_ahead(name)

        of_base = stored.get(planned.base)
        return TensorSource(
            planned.name,
            planned.base,
            planned.load,
            planned.linears,
            planned.aligned,
            shard="" if of_base is None else of_base[0].shard_of(of_base[1]),
            read_ahead=read_ahead,
        )
