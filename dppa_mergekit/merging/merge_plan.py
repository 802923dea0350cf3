"""One merge: every tensor that mergekit plans, where its inputs are, and whether they can merge.

Headers are checked as tensors are added, so before the first one is read and before the output
folder exists.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from pydantic import TypeAdapter
from tqdm import tqdm

from dppa_mergekit.allocation.density import DynamicPruning
from dppa_mergekit.allocation.measurement import Progress, TensorSource
from dppa_mergekit.allocation.statistics import ModelStatistics, Multiples
from dppa_mergekit.checkpoints.headers import FLOATING, PLAIN_DTYPES, Checkpoint, Header
from dppa_mergekit.checkpoints.tensor_loading import (
    checkpoint_of,
    is_convertible,
    own_name,
    possible_names,
    read,
    reading,
)
from dppa_mergekit.combination.combination import Listener
from dppa_mergekit.errors import CheckpointError, RecipeError
from dppa_mergekit.merging.model_allocation import Allocation
from dppa_mergekit.merging.planned_tensor import PlannedTensor
from dppa_mergekit.merging.thresholds import KeptPlaces, KeptSets, Thresholds
from dppa_mergekit.parameters import REQUIRED
from dppa_mergekit.storage.cache import CacheEntry, cache_entry, cache_folder
from dppa_mergekit.tensor_names import block_of, linears_in, natural_order

if TYPE_CHECKING:
    from mergekit.common import ModelReference

    from dppa_mergekit.checkpoints.tensor_loading import Load

LOG = logging.getLogger(__name__)

_STATISTICS = TypeAdapter(tuple[ModelStatistics, ...])
_KEPT_SETS = TypeAdapter(tuple[KeptSets, ...])


@dataclass
class Plan:
    """One merge that mergekit has planned, or is planning.

    Attributes:
        method: The merge method's name.
        quiet: Whether progress bars are off.
        output_dtype: What every output is cast to after the merge; None for the inputs' own.
        listener: Is told of every linear and dense tensor that is merged, its partitions apart.
        tensors: Output name -> what is planned for it.
    """

    method: str
    quiet: bool = False
    output_dtype: torch.dtype | None = None
    listener: Listener | None = None
    tensors: dict[str, PlannedTensor] = field(default_factory=dict)
    _checkpoints: dict[ModelReference, Checkpoint] = field(default_factory=dict)
    _searched: set[ModelReference] = field(default_factory=set)
    _without: set[ModelReference] = field(default_factory=set)
    _allocation: Allocation | None = None
    _thresholds: Thresholds | None = None
    _awaited: set[str] = field(default_factory=set)
    _merged: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, planned: PlannedTensor) -> None:
        """Take in what mergekit plans for one tensor, and check the headers of its inputs.

        Raises:
            RecipeError: The recipe's slices move the layer, or a model has no weight for it.
            CheckpointError: A header shows that the inputs cannot be merged.
        """
        self._refuse_moved_layers(planned)
        for model in planned.models:
            if planned.per_model[model]["weight"] is REQUIRED:
                raise RecipeError(
                    f"{model}: there is no weight for {planned.name}; every fine-tuned model needs "
                    f"one for every tensor, so filters need a last entry without a filter."
                )
        base = self._check_headers(planned)
        self.tensors[planned.name] = planned
        # Of integers, mergekit copies the base's and does not ask us.
        if base is None or base.dtype in FLOATING:
            self._awaited.add(planned.name)

    def allocation(self, pruning: Callable[[Mapping[str, object]], DynamicPruning]) -> Allocation:
        """The allocation of this merge; made once, when all tensors are planned.

        Args:
            pruning: From a tensor's shared parameters, how its linears are pruned.
        """
        with self._lock:
            if self._allocation is None:
                self._allocation = self._new_allocation(pruning)
            return self._allocation

    def thresholds(self, allocation: Allocation) -> Thresholds:
        """The kept sets of this merge's linears."""
        with self._lock:
            if self._thresholds is None:
                self._thresholds = Thresholds(self._places_of_kept_sets(), allocation.linears)
            return self._thresholds

    def ended(self, names: Iterable[str]) -> None:
        """Note that tensors are merged; with the last of them, let go of what merging needed.

        mergekit 0.1.5 caches a method of its planner with the planner itself (`_model_arch`,
        mergekit/plan.py), so that plans may live as long as the process.
        """
        with self._lock:
            self._merged.update(names)
            if self._merged >= self._awaited:
                self._merged.clear()
                self._allocation = self._thresholds = self.listener = None

    def fingerprint(self) -> list[object]:
        """Plain data that differs where deltas or parameters do."""
        return [
            self.method,
            [[str(model), content] for model, content in self._depends.items()],
            [
                [
                    each.name,
                    _plain(each.shared),
                    sorted((str(m), _plain(p)) for m, p in each.per_model.items()),
                ]
                for each in self._by_name
            ],
        ]

    def shape_of(self, planned: PlannedTensor) -> tuple[int, ...]:
        """The shape of the base's tensor: from its header, or read where it is packed on load."""
        load = planned.loads[planned.base]
        header = self._header(planned.base, load)
        if header is not None:
            return header.shape
        base = read(load, planned.base)
        return () if base is None else tuple(base.shape)

    def in_order_of_shards(self) -> list[PlannedTensor]:
        """The tensors, block by block, as they lie in the base's files."""
        return sorted(
            self.tensors.values(),
            key=lambda each: (natural_order(self._source(each).shard), natural_order(each.name)),
        )

    def _new_allocation(
        self, pruning: Callable[[Mapping[str, object]], DynamicPruning]
    ) -> Allocation:
        densities: dict[Hashable, dict[str, float]] = {}
        for planned in self.tensors.values():
            for model in planned.models:
                density = planned.per_model[model]["density"]
                assert isinstance(density, float)
                densities.setdefault(model, {})[planned.name] = density
        pairs = [pruning(planned.shared).multiples for planned in self.tensors.values()]
        multiples = [each for each in dict.fromkeys(pairs) if each is not None]
        return Allocation(
            [self._source(planned) for planned in self._by_name],
            densities,
            multiples,
            None if self.quiet else progress_bar,
            self._cached(multiples),
        )

    def _cached(
        self, multiples: Sequence[Multiples]
    ) -> dict[Hashable, CacheEntry[tuple[ModelStatistics, ...]]]:
        """Where the statistics of the models may be found, or kept for the next merge."""
        pairs = sorted((pair.linear, pair.of_block) for pair in multiples)
        where = cache_folder()
        if where is None:
            return {}
        return {
            model: cache_entry(where, str(model), "statistics", _STATISTICS, [content, pairs])
            for model, content in self._depends.items()
        }

    def _places_of_kept_sets(self) -> KeptPlaces:
        where = cache_folder()
        if where is None:
            return {}
        return {
            model: cache_entry(where, str(model), "kept sets", _KEPT_SETS, content)
            for model, content in self._depends.items()
        }

    @cached_property
    def _depends(self) -> dict[Hashable, list[object]]:
        """Model -> plain data that differs where its deltas do: files, tensors, dtypes."""
        files = {model: checkpoint.fingerprint() for model, checkpoint in self._checkpoints.items()}
        bases = list(dict.fromkeys(planned.base for planned in self._by_name))
        tensors: dict[Hashable, list[object]] = {}
        for planned in self._by_name:
            shared = [
                planned.name,
                planned.vocabulary,
                planned.aligned,
                bases.index(planned.base),
                self._is_double(planned),
                reading(planned.loads[planned.base]),
            ]
            for model in planned.models:
                tensors.setdefault(model, []).append([*shared, reading(planned.loads[model])])
        return {
            model: [[files[base] for base in bases], files[model], of_model]
            for model, of_model in tensors.items()
        }

    @property
    def _by_name(self) -> list[PlannedTensor]:
        """The tensors in an order that is the same in every process; mergekit-pytorch's is not."""
        return [self.tensors[name] for name in sorted(self.tensors)]

    def _is_double(self, planned: PlannedTensor) -> bool:
        """Whether one of its inputs, and so every delta of it, is in float64."""
        for model, load in planned.loads.items():
            header, cast = self._header(model, load), (load.dtype or "").removeprefix("torch.")
            if header is not None and (cast == "float64" or (not cast and header.dtype == "F64")):
                return True
        return False

    def _refuse_moved_layers(self, planned: PlannedTensor) -> None:
        for model, load in planned.loads.items():
            name = own_name(load)
            if block_of(name) != block_of(planned.name):
                raise RecipeError(
                    f"slices: {name} of {model} would become {planned.name}; {self.method} "
                    f"allocates its density over whole models, so every layer must stay in place."
                )

    def _check_headers(self, planned: PlannedTensor) -> Header | None:
        """Refuse what headers show to be unmergeable; the base's header, where there is one."""
        headers: dict[ModelReference, Header] = {}
        for model, load in planned.loads.items():
            stored = self._stored(model, load)
            if stored is not None:
                headers[model] = self._checkpoint(model, load).header(stored)
                _refuse_quantised(model, stored, headers[model])
            elif is_convertible(load):
                self._check_all_headers(model, self._checkpoint(model, load))
            elif planned.optional:
                self._accept_missing(planned, model)
            else:
                raise CheckpointError(f"{model}: tensor {planned.name} is missing.")
        base = headers.get(planned.base)
        for model, header in headers.items():
            if base is not None and planned.comparable(header.shape) != planned.comparable(
                base.shape
            ):
                hint = ""
                if planned.vocabulary is not None:
                    hint = " With vocabularies that differ, set tokenizer: {source: base} or union."
                raise CheckpointError(
                    f"{model}: tensor {planned.name} has shape {list(header.shape)}; that of the "
                    f"base model {planned.base} has {list(base.shape)}.{hint}"
                )
        return base

    def _check_all_headers(self, model: ModelReference, checkpoint: Checkpoint) -> None:
        """Look at all stored linears, once: some are packed into others when they are read."""
        if model not in self._searched:
            self._searched.add(model)
            for stored in checkpoint.stored():
                header = checkpoint.header(stored)
                if linears_in(stored, header.shape):
                    _refuse_quantised(model, stored, header)

    def _accept_missing(self, planned: PlannedTensor, model: ModelReference) -> None:
        others = [
            other for other, load in planned.loads.items() if self._stored(other, load) is not None
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

    def _checkpoint(self, model: ModelReference, load: Load) -> Checkpoint:
        if model not in self._checkpoints:
            self._checkpoints[model] = checkpoint_of(load, model)
        return self._checkpoints[model]

    def _stored(self, model: ModelReference, load: Load) -> str | None:
        """The name under which a model stores a tensor; None where it does not, or packs it."""
        return self._checkpoint(model, load).stored_name(possible_names(load))

    def _header(self, model: ModelReference, load: Load) -> Header | None:
        stored = self._stored(model, load)
        return None if stored is None else self._checkpoint(model, load).header(stored)

    def _source(self, planned: PlannedTensor) -> TensorSource:
        stored = {
            model: (self._checkpoint(model, load), name)
            for model, load in planned.loads.items()
            if (name := self._stored(model, load)) is not None
        }

        def read_ahead() -> None:
            for checkpoint, name in stored.values():
                checkpoint.read_ahead(name)

        of_base = stored.get(planned.base)
        return TensorSource(
            planned.name,
            planned.base,
            planned.load,
            lambda shape: linears_in(
                planned.name, shape, vocabulary=planned.vocabulary is not None
            ),
            planned.aligned,
            shard="" if of_base is None else of_base[0].shard_of(of_base[1]),
            read_ahead=read_ahead,
        )


def _plain(parameters: Mapping[str, object]) -> list[tuple[str, str]]:
    """Parameters in an order that is the same in every process."""
    return sorted((name, repr(value)) for name, value in parameters.items())


@contextmanager
def progress_bar(total: int) -> Iterator[Progress]:
    """A progress bar on stderr over the tensors of the statistics pass."""
    with tqdm(total=total, desc="Delta statistics", unit="tensor") as bar:
        yield bar


def _refuse_quantised(model: ModelReference, name: str, header: Header) -> None:
    weight = name.endswith("weight") or linears_in(name, header.shape)
    if weight and header.dtype not in PLAIN_DTYPES:
        raise CheckpointError(
            f"{model}: tensor {name} is quantised ({header.dtype}); allowed are F64, F32, F16 and "
            f"BF16: dequantise the model first."
        )
