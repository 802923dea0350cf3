"""Measurement of a whole model's deltas: its statistics, and what must be refused.

Tensors come in one set at a time (the base's and every fine-tuned model's), block by block. Every
tensor is visited once: magnitudes are summed, zeros counted, NaN and infinity refused. The linears
of a block are visited a second time, when the block's mean is known, for the tails above both
means. Sums run over rows of fixed length and are kept in float64, so that they depend on neither
the number of threads nor the order in which tensors arrive.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy
import torch

from dppa_mergekit.deltas import CHUNK, Delta
from dppa_mergekit.errors import CheckpointError
from dppa_mergekit.names import Block, Linear, block_of, linears_in, natural_order
from dppa_mergekit.statistics import LinearStatistics, ModelStatistics, Multiples

ROW = 256
"""Elements per partial sum. CHUNK is a multiple of it."""


@dataclass(frozen=True)
class TensorSource:
    """One tensor of the base and of every fine-tuned model, read on demand.

    Attributes:
        name: The tensor's name.
        base: The key of the base model in what `load` returns.
        load: Returns model -> tensor, borrowed; a model without the tensor is left out.
        linears: From the shape, how many linears it holds.
        aligned: Whether vocabularies may still differ here, as mergekit aligns them later.
        shard: Where the base keeps it; sources of one shard are read together.
    """

    name: str
    base: Hashable
    load: Callable[[], Mapping[Hashable, torch.Tensor]]
    linears: Callable[[Sequence[int]], int]
    aligned: bool = False
    shard: str = ""


class Progress(Protocol):
    """What tqdm offers: a step forward."""

    def update(self, n: float | None = 1) -> bool | None:
        """Advance by n tensors."""
        ...


Found = dict[Hashable, dict[Multiples | None, list[LinearStatistics]]]


@dataclass
class _Tally:
    """What the visits have gathered: per model the records, and which models moved at all."""

    records: Found = field(default_factory=dict)
    moved: set[Hashable] = field(default_factory=set)


def measure(
    sources: Iterable[TensorSource],
    models: Sequence[Hashable],
    multiples: Iterable[Multiples],
    progress: Callable[[int], AbstractContextManager[Progress]] | None = None,
) -> dict[Hashable, dict[Multiples | None, ModelStatistics]]:
    """The statistics of every model at every pair of multiples, and at None without tails.

    Args:
        sources: All tensors of the models, in any order.
        models: The keys of the fine-tuned models.
        multiples: What the tails are measured at.
        progress: Given the number of tensors, opens a progress bar.

    Raises:
        CheckpointError: A tensor holds NaN or infinity, or its shape is not the base's.
    """
    wanted = tuple(dict.fromkeys(multiples))
    units: dict[Block | str, list[TensorSource]] = {}
    for source in sorted(sources, key=lambda source: natural_order(source.name)):
        units.setdefault(block_of(source.name) or source.name, []).append(source)
    tally = _Tally({model: {key: [] for key in (None, *wanted)} for model in models})
    total = sum(len(unit) for unit in units.values())
    with nullcontext() if progress is None else progress(total) as bar:
        for unit in sorted(units.values(), key=lambda unit: natural_order(unit[0].shard)):
            _measure_unit(unit, wanted, tally, bar)
    return {
        model: {
            key: ModelStatistics(
                key,
                tuple(_in_order(records)),
                model not in tally.moved,
            )
            for key, records in found.items()
        }
        for model, found in tally.records.items()
    }


def delta_statistics(
    base: Mapping[str, torch.Tensor],
    tuned: Mapping[str, torch.Tensor],
    multiples: Multiples | None = None,
) -> ModelStatistics:
    """The statistics of one fine-tuned model in memory.

    Args:
        base: Name -> tensor of the base model.
        tuned: Name -> tensor of the fine-tuned model, of the same names and shapes.
        multiples: N of linears and blocks; 5 and 5 where None.

    Raises:
        CheckpointError: A tensor holds NaN or infinity, its shape is not the base's, or it is
            missing in the fine-tuned model.
    """
    missing = [name for name in base if name not in tuned]
    if missing:
        raise CheckpointError(f"The fine-tuned model has no tensor {missing[0]}.")
    chosen = multiples or Multiples()

    def source(name: str) -> TensorSource:
        return TensorSource(
            name,
            "base",
            lambda: {"base": base[name], "tuned": tuned[name]},
            lambda shape: linears_in(name, shape),
        )

    sources = [source(name) for name in base if base[name].is_floating_point()]
    return measure(sources, ["tuned"], [chosen])["tuned"][chosen]


def _measure_unit(
    unit: Sequence[TensorSource],
    multiples: Sequence[Multiples],
    tally: _Tally,
    bar: Progress | None,
) -> None:
    """Both visits to the tensors of one block, or the one visit to a tensor outside blocks."""
    ordered = sorted(unit, key=lambda source: natural_order(source.shard))
    first: dict[Hashable, list[LinearStatistics]] = {model: [] for model in tally.records}
    holding = []
    for source in ordered:
        held = _first_visit(source, first, tally.moved)
        if held:
            holding.append(source)
        if bar is not None:
            bar.update(1)
    for model, records in first.items():
        tally.records[model][None].extend(records)
    if not multiples or not holding:
        return
    means = {
        model: sum(each.magnitude for each in _in_order(records))
        / max(1, sum(each.numel for each in records))
        for model, records in first.items()
    }
    known = {model: {each.linear: each for each in records} for model, records in first.items()}
    # Backwards: the shard that the first visit ended in is still open.
    for source in reversed(holding):
        _second_visit(source, known, means, multiples, tally)


def _in_order(records: Iterable[LinearStatistics]) -> list[LinearStatistics]:
    return sorted(records, key=lambda each: (natural_order(each.linear.tensor), each.linear.expert))


def _pairs(
    source: TensorSource, models: Iterable[Hashable]
) -> Iterable[tuple[Hashable, torch.Tensor, torch.Tensor]]:
    """Yield (model, base tensor, tuned tensor) for every model that has the tensor."""
    tensors = source.load()
    base = tensors.get(source.base)
    if base is None or not base.is_floating_point():
        return
    for model in models:
        tuned = tensors.get(model)
        if tuned is None:
            continue
        if tuned.shape != base.shape and not source.aligned:
            raise CheckpointError(
                f"{model}: tensor {source.name} has shape {list(tuned.shape)}; "
                f"the base model's has {list(base.shape)}."
            )
        yield model, base, tuned


def _first_visit(
    source: TensorSource,
    first: dict[Hashable, list[LinearStatistics]],
    moved: set[Hashable],
) -> int:
    """Sum the magnitudes and count the non-zero deltas; returns how many linears it holds."""
    held = 0
    for model, base, tuned in _pairs(source, first):
        if tuned.shape != base.shape:
            # The recipe's tokenizer aligns the two later.
            _refuse_non_finite(source.name, {source.base: base, model: tuned}, always=False)
            moved.add(model)
            continue
        held = source.linears(base.shape)
        for expert, delta in enumerate(linear_deltas(base, tuned, held)):
            magnitude, nonzero = 0.0, 0
            for _, values in delta.chunks():
                nonzero += int(torch.count_nonzero(values))
                magnitude += _row_sum(values.abs_())
            if not numpy.isfinite(magnitude):
                _refuse_non_finite(source.name, {source.base: base, model: tuned}, always=True)
            if nonzero:
                moved.add(model)
            if held:
                linear = Linear(source.name, expert)
                first[model].append(
                    LinearStatistics(linear, block_of(source.name), delta.numel, nonzero, magnitude)
                )
    return held


def _second_visit(
    source: TensorSource,
    known: Mapping[Hashable, Mapping[Linear, LinearStatistics]],
    means: Mapping[Hashable, float],
    multiples: Sequence[Multiples],
    tally: _Tally,
) -> None:
    """Measure the tails of the linears of one tensor at every pair of multiples."""
    for model, base, tuned in _pairs(source, known):
        held = source.linears(base.shape)
        for expert, delta in enumerate(linear_deltas(base, tuned, held)):
            record = known[model][Linear(source.name, expert)]
            own = record.magnitude / record.numel
            bounds = sorted(
                {pair.linear * own for pair in multiples}
                | {pair.of_block * means[model] for pair in multiples}
            )
            tails = dict(zip(bounds, _tails(delta, bounds), strict=True))
            for pair in multiples:
                mass, count = tails[pair.linear * own]
                block_mass, block_count = tails[pair.of_block * means[model]]
                tally.records[model][pair].append(
                    replace(
                        record,
                        mass=mass,
                        count=count,
                        block_mass=block_mass,
                        block_count=block_count,
                    )
                )


def linear_deltas(base: torch.Tensor, tuned: torch.Tensor, held: int) -> list[Delta]:
    """The delta of every linear in a tensor; that of the whole tensor if it holds at most one.

    Args:
        base: Any shape, or (experts, rows, columns).
        tuned: Of the same shape.
        held: Number of linears, from `linears_in`.
    """
    if held <= 1:
        return [Delta.between(base, tuned)]
    return [Delta.between(base[expert], tuned[expert]) for expert in range(held)]


def _row_sum(values: torch.Tensor) -> float:
    """The sum of non-negative values in float64, the same for any number of threads.

    A plain sum is split by threads. Of a matrix, every row is summed by one of them.
    """
    whole = values.numel() // ROW * ROW
    total = 0.0
    if whole:
        total += float(values[:whole].view(-1, ROW).sum(1, dtype=torch.float64).sum())
    if whole < values.numel():
        total += float(values[whole:].sum(dtype=torch.float64))
    return total


def _tails(delta: Delta, bounds: Sequence[float]) -> list[tuple[float, int]]:
    """Per bound, the sum and the number of the magnitudes above it."""
    below = [_largest_at_most(bound, delta.dtype) for bound in bounds]
    masses, counts = [0.0] * len(bounds), [0] * len(bounds)
    length = min(CHUNK, delta.numel)
    above = torch.empty(length, dtype=delta.dtype, device=delta.device)
    for _, values in delta.chunks():
        magnitudes = values.abs_()
        for position, bound in enumerate(below):
            tail = above[: magnitudes.numel()]
            torch.gt(magnitudes, bound, out=tail)
            counts[position] += int(torch.count_nonzero(tail))
            masses[position] += _row_sum(tail.mul_(magnitudes))
    return list(zip(masses, counts, strict=True))


def _largest_at_most(bound: float, dtype: torch.dtype) -> float:
    """The largest value of the dtype not above the bound: rounding it up would lose elements."""
    if dtype == torch.float64:
        return bound
    rounded = numpy.float32(bound)
    if float(rounded) > bound:
        rounded = numpy.nextafter(rounded, numpy.float32(-numpy.inf))
    return float(rounded)


def _refuse_non_finite(name: str, tensors: Mapping[Hashable, torch.Tensor], always: bool) -> None:
    """Raise for the first of the tensors that holds NaN or infinity.

    Args:
        name: The tensor's name.
        tensors: Model -> its tensor.
        always: Raise in any case: the delta itself is known not to be finite.
    """
    for model, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{model}: tensor {name} holds NaN or infinity.")
    if always:
        raise CheckpointError(
            f"{' and '.join(str(model) for model in tensors)}: the difference of tensor {name} "
            f"is too large for its dtype."
        )
