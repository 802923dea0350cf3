"""One pass over all linears of a planned merge: offsets, significance, structure, overlaps.

Reads a tensor at a time, and each tensor a chunk at a time, so that it holds no more in memory than
a merge does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, TypeAlias

import numpy
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from dppa_mergekit.allocation.allocations import Allocation
from dppa_mergekit.allocation.density import DynamicPruning
from dppa_mergekit.allocation.statistics import LinearStatistics
from dppa_mergekit.analysis.histogram import Histogram
from dppa_mergekit.analysis.results import (
    RATES,
    UNPRUNED,
    Analysis,
    BlockAnalysis,
    Counts,
    LinearAnalysis,
    ModelAnalysis,
    Overlap,
    Pair,
    TensorClass,
    measure_structure,
)
from dppa_mergekit.deltas.delta import Buffer, Delta, delta_chunks, linear_deltas
from dppa_mergekit.deltas.threads import share
from dppa_mergekit.sparsification.pruning import Pruned, plan_pruning, prune
from dppa_mergekit.sparsification.selections import LargestMagnitudes
from dppa_mergekit.tensor_names import (
    Block,
    Linear,
    block_of,
    dense_because,
    kind_of,
    linears_in,
    natural_order,
)

if TYPE_CHECKING:
    from mergekit.common import ModelReference

    from dppa_mergekit.merging.merge_plan import Plan
    from dppa_mergekit.merging.model_allocation import ModelAllocation
    from dppa_mergekit.merging.planned_tensor import PlannedTensor

Mask: TypeAlias = NDArray[numpy.bool_]
"""(elements,) which elements of a chunk are kept."""


@dataclass
class _LinearCounts:
    """Counts over the chunks of one linear, for every model and every pair of models.

    Attributes:
        histograms: (models,) histograms of the deltas.
        rows: Rate -> (models, rows) the number of kept elements.
        columns: Rate -> (models, columns) the number of kept elements.
        overlaps: (pairs, states, 3) the number of elements that either model keeps, that both keep,
            and that both keep with opposite signs; the states are unpruned and then the rates.
    """

    histograms: list[Histogram]
    rows: dict[int, Counts]
    columns: dict[int, Counts]
    overlaps: Counts

    @classmethod
    def empty(cls, models: int, rows: int, columns: int) -> _LinearCounts:
        """Return the counts before the first chunk.

        Args:
            models: The number of models.
            rows: The number of rows of the linear.
            columns: The number of columns of the linear.
        """
        pairs = models * (models - 1) // 2
        return cls(
            [Histogram() for _ in range(models)],
            {rate: numpy.zeros((models, rows), numpy.int64) for rate in RATES},
            {rate: numpy.zeros((models, columns), numpy.int64) for rate in RATES},
            numpy.zeros((pairs, 1 + len(RATES), 3), numpy.int64),
        )

    def merge(self, other: _LinearCounts) -> None:
        """Add the counts of another thread."""
        for histogram, others in zip(self.histograms, other.histograms, strict=True):
            histogram.merge(others)
        for rate in RATES:
            self.rows[rate] += other.rows[rate]
            self.columns[rate] += other.columns[rate]
        self.overlaps += other.overlaps


@dataclass
class _ModelCounts:
    """Results and counts of one model, over the linears so far.

    Attributes:
        histogram: The histogram of all deltas.
        linears: The results of every linear.
        nonzero: The number of deltas that are not zero.
    """

    histogram: Histogram = field(default_factory=Histogram)
    linears: list[LinearAnalysis] = field(default_factory=list)
    nonzero: int = 0


@dataclass
class _PairCounts:
    """Counts of two models, over the linears so far.

    Attributes:
        numel: The number of elements that both models have.
        counts: (states, 3) as in `_LinearCounts.overlaps`.
    """

    numel: int
    counts: Counts


def inspect_deltas(plan: Plan) -> Analysis:
    """Read all deltas of a planned merge once, and return their analysis."""
    allocation = plan.allocation()
    allocation.prepare()
    models: dict[ModelReference, _ModelCounts] = {}
    pairs: dict[tuple[str, str], _PairCounts] = {}
    classes: list[TensorClass] = []
    for planned in tqdm(plan.in_order_of_shards(), desc="analyze", unit="tensor", delay=2):
        for model in planned.models:
            models.setdefault(model, _ModelCounts())
        shape = plan.shape_of(planned)
        because = dense_because(planned.name, shape, planned.vocabulary is not None)
        held = linears_in(planned.name, shape, planned.vocabulary is not None)
        classes.append(TensorClass(planned.name, shape, held, because))
        if held:
            _visit(planned, held, allocation, models, pairs)
    return Analysis(
        plan.method.name,
        tuple(sorted(classes, key=lambda tensor: natural_order(tensor.name))),
        tuple(_analyze_model(model, counts, plan, allocation) for model, counts in models.items()),
        tuple(Pair(names, _overlaps(counts)) for names, counts in pairs.items()),
    )


def _visit(
    planned: PlannedTensor,
    held: int,
    allocation: ModelAllocation,
    models: Mapping[ModelReference, _ModelCounts],
    pairs: dict[tuple[str, str], _PairCounts],
) -> None:
    """Analyse the linears of one tensor, and add the results to the models and pairs.

    Args:
        planned: The tensor.
        held: The number of linears that it holds.
        allocation: The kept counts of all linears.
        models: Model -> its counts.
        pairs: Names of two models -> their counts.
    """
    by = planned.parameters.allocation
    tensors = planned.load()
    base = tensors[planned.base]
    # One order for all tensors, since slices may list the models in different orders.
    present = [model for model in models if model in planned.models and model in tensors]
    deltas = {model: linear_deltas(base, tensors[model], held) for model in present}
    rows, columns = base.shape[-2:]
    for expert in range(held if present else 0):
        linear = Linear(planned.name, expert)
        of_linear = [deltas[model][expert] for model in present]
        pruned = prune(
            [
                plan_pruning(
                    delta,
                    {
                        rate: allocation.kept(model, by, (100 - rate) / 100)[linear]
                        for rate in RATES
                    },
                    {},
                    LargestMagnitudes(),
                )
                for model, delta in zip(present, of_linear, strict=True)
            ]
        )
        counts = _count(of_linear, pruned, rows, columns)
        for index, model in enumerate(present):
            density = planned.parameters.models[model].density
            found = models[model]
            found.histogram.merge(counts.histograms[index])
            known = allocation.statistics(model, by.multiples)[linear]
            found.nonzero += known.nonzero
            found.linears.append(
                LinearAnalysis(
                    linear.tensor,
                    expert,
                    kind_of(linear.tensor),
                    known.numel,
                    known.magnitude / known.numel,
                    _significance([known], by, of_block=False),
                    allocation.kept(model, by, density)[linear],
                    {
                        rate: measure_structure(
                            counts.rows[rate][index], counts.columns[rate][index]
                        )
                        for rate in RATES
                    },
                )
            )
        for index, (first, second) in enumerate(combinations(map(str, present), 2)):
            pair = pairs.setdefault(
                (first, second), _PairCounts(0, numpy.zeros_like(counts.overlaps[index]))
            )
            pair.numel += rows * columns
            pair.counts += counts.overlaps[index]


def _count(
    deltas: Sequence[Delta], pruned: Sequence[Pruned], rows: int, columns: int
) -> _LinearCounts:
    """Count over the deltas of one linear in several models.

    Args:
        deltas: (models,) deltas of `rows * columns` elements, on one base.
        pruned: (models,) their kept elements at each rate.
        rows: The number of rows of the linear.
        columns: The number of columns of the linear.
    """

    def work(chunks: Iterator[tuple[int, int]]) -> _LinearCounts:
        readers, origin = delta_chunks(deltas)
        assert origin is not None
        buffer = Buffer(deltas[0].dtype, deltas[0].device)
        counts = _LinearCounts.empty(len(deltas), rows, columns)
        for start, stop in chunks:
            base = origin.read(start, stop).float().numpy()
            signs, masks = [], []
            for model, (reader, kept) in enumerate(zip(readers, pruned, strict=True)):
                delta = reader.read(start, stop)
                values = delta.float().numpy()
                counts.histograms[model].add(values, base)
                signs.append(numpy.sign(values).astype(numpy.int8))
                masks.append(_kept_masks(kept, start, delta, buffer))
                for rate, mask in zip(RATES, masks[-1], strict=True):
                    positions = numpy.flatnonzero(mask) + start
                    of_rows = numpy.bincount(positions // columns, minlength=rows)
                    counts.rows[rate][model] += of_rows
                    of_columns = numpy.bincount(positions % columns, minlength=columns)
                    counts.columns[rate][model] += of_columns
            _count_overlaps(signs, masks, counts.overlaps)
        return counts

    first, *others = share(work, deltas[0].chunks(), deltas[0].device)
    for counts in others:
        first.merge(counts)
    return first


def _count_overlaps(
    signs: Sequence[NDArray[numpy.int8]], masks: Sequence[Sequence[Mask]], overlaps: Counts
) -> None:
    """Add the overlaps within one chunk.

    Args:
        signs: (models,) the signs of the deltas, (elements,) each.
        masks: (models,) for each rate, which elements are kept.
        overlaps: (pairs, states, 3) as in `_LinearCounts`; changed in place.
    """
    for pair, models in enumerate(combinations(range(len(signs)), 2)):
        for state in range(1 + len(RATES)):
            first, second = (
                signs[model] * masks[model][state - 1] if state else signs[model]
                for model in models
            )
            product = first * second
            overlaps[pair, state] += (
                numpy.count_nonzero(first | second),
                numpy.count_nonzero(product),
                numpy.count_nonzero(product < 0),
            )


def _kept_masks(pruned: Pruned, start: int, delta: torch.Tensor, buffer: Buffer) -> list[Mask]:
    """Return, for each rate, which elements of a chunk are kept."""
    keys = pruned.pruning.keys
    if keys is None:
        return [numpy.ones(delta.numel(), numpy.bool_) for _ in RATES]
    of_chunk = keys.chunk(start, delta, buffer)
    return [cut.kept_mask(start, of_chunk).numpy() for cut in pruned.cuts]


def _significance(
    linears: Sequence[LinearStatistics], by: Allocation, of_block: bool
) -> float | None:
    """The significance of a linear, or of the linears of a block; None if it plays no part."""
    if not isinstance(by, DynamicPruning) or by.multiples is None:
        return None
    return by.significance_of(linears, of_block)


def _analyze_model(
    model: ModelReference,
    counts: _ModelCounts,
    plan: Plan,
    allocation: ModelAllocation,
) -> ModelAnalysis:
    """Return the results of one model, given its counts over all linears."""
    linears = sorted(
        counts.linears, key=lambda linear: (natural_order(linear.tensor), linear.expert)
    )
    by_block: dict[Block, list[LinearAnalysis]] = {}
    for linear in linears:
        block = block_of(linear.tensor)
        assert block is not None
        by_block.setdefault(block, []).append(linear)
    blocks = []
    for block, members in sorted(by_block.items()):
        by = plan.tensors[members[0].tensor].parameters.allocation
        known = allocation.statistics(model, by.multiples)
        of_block = [known[Linear(member.tensor, member.expert)] for member in members]
        numel = sum(member.numel for member in members)
        blocks.append(
            BlockAnalysis(
                block.stack,
                block.number,
                numel,
                sum(member.magnitude for member in of_block) / numel,
                _significance(of_block, by, of_block=True),
                sum(member.kept for member in members),
            )
        )
    offsets = counts.histogram.offsets(counts.nonzero)
    return ModelAnalysis(str(model), offsets, tuple(linears), tuple(blocks))


def _overlaps(pair: _PairCounts) -> dict[str, Overlap]:
    """Return the overlap of two models before pruning and at each rate."""
    states = (UNPRUNED, *map(str, RATES))
    return {
        state: Overlap(*(int(count) / pair.numel for count in counts))
        for state, counts in zip(states, pair.counts, strict=True)
    }
