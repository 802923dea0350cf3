"""One look at all linears of a planned merge: offsets, significance, kept sets, overlaps.

A tensor at a time, and of it a chunk at a time, so that no more is held than a merge holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, TypeAlias

import numpy
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dppa_mergekit.allocation.statistics import LinearStatistics
from dppa_mergekit.analysis.histogram import Histogram
from dppa_mergekit.analysis.results import (
    DENSE,
    RATES,
    Analysis,
    BlockAnalysis,
    Counts,
    LinearAnalysis,
    ModelAnalysis,
    Overlap,
    Pair,
    TensorClass,
    structure,
)
from dppa_mergekit.deltas.delta import Buffer, Delta, delta_chunks, linear_deltas
from dppa_mergekit.deltas.threads import share
from dppa_mergekit.sparsification.amplification import PartitionAmplification, Pruned, prune
from dppa_mergekit.tensor_names import (
    Block,
    Linear,
    block_of,
    dense_because,
    linears_in,
    natural_order,
)

if TYPE_CHECKING:
    from mergekit.common import ModelReference

    from dppa_mergekit.allocation.density import DynamicPruning
    from dppa_mergekit.merging.merge_plan import Plan
    from dppa_mergekit.merging.model_allocation import Allocation
    from dppa_mergekit.merging.planned_tensor import PlannedTensor

AllocatedBy: TypeAlias = "Callable[[Mapping[str, object]], DynamicPruning]"
"""From a tensor's shared parameters, how its linears are pruned."""


@dataclass
class _Seen:
    """What was seen in the chunks of one linear; of every model, or pair of models.

    Attributes:
        histograms: (models,) of the deltas.
        rows: Rate -> (models, rows) kept elements.
        columns: Rate -> (models, columns) kept elements.
        overlaps: (pairs, unpruned and rates, 3) elements of either, of both, of opposite signs.
    """

    histograms: list[Histogram]
    rows: dict[int, Counts]
    columns: dict[int, Counts]
    overlaps: Counts

    @classmethod
    def none(cls, models: int, rows: int, columns: int) -> _Seen:
        """Of so many models, before the first chunk."""
        pairs = models * (models - 1) // 2
        return cls(
            [Histogram() for _ in range(models)],
            {rate: numpy.zeros((models, rows), numpy.int64) for rate in RATES},
            {rate: numpy.zeros((models, columns), numpy.int64) for rate in RATES},
            numpy.zeros((pairs, 1 + len(RATES), 3), numpy.int64),
        )

    def merge(self, other: _Seen) -> None:
        """Add what another thread saw."""
        for mine, others in zip(self.histograms, other.histograms, strict=True):
            mine.merge(others)
        for rate in RATES:
            self.rows[rate] += other.rows[rate]
            self.columns[rate] += other.columns[rate]
        self.overlaps += other.overlaps


@dataclass
class _Model:
    """What the pass gathers of one model."""

    histogram: Histogram = field(default_factory=Histogram)
    linears: list[LinearAnalysis] = field(default_factory=list)
    nonzero: int = 0


@dataclass
class _Compared:
    """What the pass gathers of two models: how much was compared, and what is in `_Seen`."""

    numel: int
    counts: Counts


def inspect_deltas(plan: Plan, allocated_by: AllocatedBy) -> Analysis:
    """One pass over all linears of a merge."""
    allocation = plan.allocation(allocated_by)
    allocation.prepare()
    models: dict[ModelReference, _Model] = {}
    pairs: dict[tuple[str, str], _Compared] = {}
    classes: list[TensorClass] = []
    for planned in tqdm(plan.in_order_of_shards(), desc="analyze", unit="tensor", delay=2):
        for model in planned.models:
            models.setdefault(model, _Model())
        shape = plan.shape_of(planned)
        because = dense_because(planned.name, shape, planned.vocabulary is not None)
        held = linears_in(planned.name, shape, planned.vocabulary is not None)
        classes.append(TensorClass(planned.name, shape, held, because))
        if held:
            _visit(planned, held, allocation, allocated_by(planned.shared), models, pairs)
    return Analysis(
        plan.method,
        tuple(sorted(classes, key=lambda each: natural_order(each.name))),
        tuple(
            _model(model, each, plan, allocation, allocated_by) for model, each in models.items()
        ),
        tuple(Pair(names, _overlaps(each)) for names, each in pairs.items()),
    )


def _visit(
    planned: PlannedTensor,
    held: int,
    allocation: Allocation,
    by: DynamicPruning,
    models: Mapping[ModelReference, _Model],
    pairs: dict[tuple[str, str], _Compared],
) -> None:
    """Look at the linears of one tensor, and add what is found to the models and pairs."""
    tensors = planned.load()
    base = tensors[planned.base]
    # In one order for all tensors: slices may list the models in different ones.
    present = [model for model in models if model in planned.models and model in tensors]
    deltas = {model: linear_deltas(base, tensors[model], held) for model in present}
    rows, columns = base.shape[-2:]
    for expert in range(held if present else 0):
        linear = Linear(planned.name, expert)
        of_linear = [deltas[model][expert] for model in present]
        cuts = prune(
            [
                PartitionAmplification().pruning(
                    delta,
                    {
                        rate: allocation.kept(model, by, (100 - rate) / 100)[linear]
                        for rate in RATES
                    },
                )
                for model, delta in zip(present, of_linear, strict=True)
            ]
        )
        seen = _seen(of_linear, cuts, rows, columns)
        for place, model in enumerate(present):
            density = planned.per_model[model]["density"]
            assert isinstance(density, float)
            found = models[model]
            found.histogram.merge(seen.histograms[place])
            known = allocation.statistics(model, by.multiples)[linear]
            found.nonzero += known.nonzero
            found.linears.append(
                LinearAnalysis(
                    linear.tensor,
                    expert,
                    _kind(linear.tensor),
                    known.numel,
                    known.magnitude / known.numel,
                    _significance([known], by, of_block=False),
                    allocation.kept(model, by, density)[linear],
                    {
                        rate: structure(seen.rows[rate][place], seen.columns[rate][place])
                        for rate in RATES
                    },
                )
            )
        for place, (first, second) in enumerate(combinations(map(str, present), 2)):
            pair = pairs.setdefault(
                (first, second), _Compared(0, numpy.zeros_like(seen.overlaps[place]))
            )
            pair.numel += rows * columns
            pair.counts += seen.overlaps[place]


def _seen(deltas: Sequence[Delta], kept: Sequence[Pruned], rows: int, columns: int) -> _Seen:
    """What is seen in the deltas of one linear, of several models."""

    def work(places: Iterator[tuple[int, int]]) -> _Seen:
        readers, origin = delta_chunks(deltas)
        assert origin is not None
        buffer = Buffer(deltas[0].dtype, deltas[0].device)
        seen = _Seen.none(len(deltas), rows, columns)
        for start, stop in places:
            base = origin.read(start, stop).float().numpy()
            signs, masks = [], []
            for place, (reader, each) in enumerate(zip(readers, kept, strict=True)):
                delta = reader.read(start, stop)
                values = delta.float().numpy()
                seen.histograms[place].add(values, base)
                signs.append(numpy.sign(values).astype(numpy.int8))
                masks.append(_masks(each, start, delta, buffer))
                for rate, mask in zip(RATES, masks[-1], strict=True):
                    at = numpy.flatnonzero(mask) + start
                    seen.rows[rate][place] += numpy.bincount(at // columns, minlength=rows)
                    seen.columns[rate][place] += numpy.bincount(at % columns, minlength=columns)
            for pair, (one, other) in enumerate(combinations(range(len(deltas)), 2)):
                for row in range(1 + len(RATES)):
                    first, second = (
                        signs[each] * masks[each][row - 1] if row else signs[each]
                        for each in (one, other)
                    )
                    product = first * second
                    seen.overlaps[pair, row] += (
                        numpy.count_nonzero(first | second),
                        numpy.count_nonzero(product),
                        numpy.count_nonzero(product < 0),
                    )
        return seen

    first, *others = share(work, deltas[0].chunks(), deltas[0].device)
    for each in others:
        first.merge(each)
    return first


def _masks(
    kept: Pruned, start: int, delta: torch.Tensor, buffer: Buffer
) -> list[NDArray[numpy.bool_]]:
    """Which elements of a chunk are kept at each rate."""
    keys = kept.pruning.keys
    if keys is None:
        return [numpy.ones(delta.numel(), numpy.bool_) for _ in RATES]
    of_chunk = keys.chunk(start, delta, buffer)
    return [cut.kept_mask(start, of_chunk).numpy() for cut in kept.cuts]


def _significance(
    linears: Sequence[LinearStatistics], by: DynamicPruning, of_block: bool
) -> float | None:
    """Of one linear by its own mean, or of the linears of a block by that of the block."""
    if by.multiples is None:
        return None
    numel = sum(each.numel for each in linears)
    if by.significance == "count":
        return sum(each.block_count if of_block else each.count for each in linears) / numel
    return sum(each.block_mass if of_block else each.mass for each in linears) / numel


def _model(
    model: ModelReference,
    found: _Model,
    plan: Plan,
    allocation: Allocation,
    allocated_by: AllocatedBy,
) -> ModelAnalysis:
    linears = sorted(found.linears, key=lambda each: (natural_order(each.tensor), each.expert))
    by_block: dict[Block, list[LinearAnalysis]] = {}
    for each in linears:
        block = block_of(each.tensor)
        assert block is not None
        by_block.setdefault(block, []).append(each)
    blocks = []
    for block, members in sorted(by_block.items()):
        by = allocated_by(plan.tensors[members[0].tensor].shared)
        known = allocation.statistics(model, by.multiples)
        of_block = [known[Linear(each.tensor, each.expert)] for each in members]
        numel = sum(each.numel for each in members)
        blocks.append(
            BlockAnalysis(
                block.stack,
                block.number,
                numel,
                sum(each.magnitude for each in of_block) / numel,
                _significance(of_block, by, of_block=True),
                sum(each.kept for each in members),
            )
        )
    offsets = found.histogram.offsets(found.nonzero)
    return ModelAnalysis(str(model), offsets, tuple(linears), tuple(blocks))


def _overlaps(found: _Compared) -> dict[str, Overlap]:
    names = (DENSE, *map(str, RATES))
    return {
        name: Overlap(*(int(count) / found.numel for count in counts))
        for name, counts in zip(names, found.counts, strict=True)
    }


def _kind(tensor: str) -> str:
    """What a tensor is called within its block."""
    block = block_of(tensor)
    assert block is not None
    within = tensor.removeprefix(f"{block.stack}." if block.stack else "")
    return within.removeprefix(f"{block.number}.").removesuffix(".weight")
