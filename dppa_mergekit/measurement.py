"""Measurement of a whole model's deltas: its statistics, and what must be refused.

Tensors come in one set at a time (the base's and every fine-tuned model's), block by block, on the
CPU. Every tensor is visited once: magnitudes are summed, zeros counted, NaN and infinity refused,
and of linears the largest magnitudes gathered. When the mean of the block is known, its tails are
read off what was gathered. A linear of which too little was gathered is visited again: too much
would have had to be held, or a guess at a mean was wrong. Sums are kept in float64, over
chunks of fixed length, so that they depend on neither the number of threads, nor the
order in which tensors arrive, nor on which of both ways a tail was found.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias

import numpy
import torch
from numpy.typing import NDArray

from dppa_mergekit.deltas import Buffer, Delta, DeltaChunks, delta_chunks
from dppa_mergekit.errors import CheckpointError
from dppa_mergekit.names import Block, Linear, block_of, linears_in, natural_order
from dppa_mergekit.statistics import LinearStatistics, ModelStatistics, Multiples
from dppa_mergekit.threads import in_order, share

SAMPLE = 1 << 12
"""Elements from which the mean of a linear is guessed before its visit."""

Magnitudes: TypeAlias = NDArray[numpy.float32] | NDArray[numpy.float64]
Tail: TypeAlias = tuple[float, int]
"""The sum and the number of the magnitudes above a bound."""


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


@dataclass(frozen=True)
class _ChunkSums:
    """What a visit finds in one chunk of one delta."""

    magnitude: float
    nonzero: int
    above: Magnitudes


Found = dict[Hashable, dict[Multiples | None, list[LinearStatistics]]]


@dataclass
class _Tally:
    """What the visits have gathered.

    Attributes:
        records: Of every model.
        moved: The models whose delta is not zero everywhere.
        relative: Model, and the name of a linear without its block -> the mean magnitude of the
            block over that of the linear, in the last block that was measured.
    """

    records: Found
    moved: set[Hashable] = field(default_factory=set)
    relative: dict[tuple[Hashable, Linear], float] = field(default_factory=dict)


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


@dataclass(frozen=True)
class _Gathered:
    """The largest magnitudes of one linear's delta.

    Attributes:
        floor: All magnitudes above it are held; none if it is infinite.
        chunks: Chunk by chunk, in flat order.
    """

    floor: float
    chunks: Sequence[Magnitudes]

    def tail(self, bound: float) -> Tail:
        """The sum and the number of the magnitudes above a bound that is not below the floor."""
        return _total(_tail(chunk, bound) for chunk in self.chunks)


@dataclass(frozen=True)
class _Visited:
    """A linear after the first visit: what is known, without tails, and what was gathered."""

    record: LinearStatistics
    gathered: _Gathered


def _measure_unit(
    unit: Sequence[TensorSource],
    multiples: Sequence[Multiples],
    tally: _Tally,
    bar: Progress | None,
) -> None:
    """Measure the tensors of one block, or one tensor outside blocks."""
    ordered = sorted(unit, key=lambda source: natural_order(source.shard))
    visited: dict[Hashable, dict[Linear, _Visited]] = {model: {} for model in tally.records}
    for source in ordered:
        _visit(source, visited, multiples, tally)
        if bar is not None:
            bar.update(1)
    bounds: dict[Hashable, dict[Linear, dict[Multiples, tuple[float, float]]]] = {}
    tails: dict[Hashable, dict[Linear, dict[float, Tail]]] = {}
    for model, linears in visited.items():
        records = _in_order(each.record for each in linears.values())
        tally.records[model][None].extend(records)
        numel = sum(each.numel for each in records)
        mean = sum(each.magnitude for each in records) / max(1, numel)
        bounds[model] = {
            each.linear: {
                pair: (pair.linear * (each.magnitude / max(1, each.numel)), pair.of_block * mean)
                for pair in multiples
            }
            for each in records
        }
        for record in records:
            if record.magnitude > 0:
                relative = mean * record.numel / record.magnitude
                tally.relative[model, _without_block(record.linear)] = relative
        tails[model] = {
            linear: {bound: linears[linear].gathered.tail(bound) for bound in wanted}
            for linear, wanted in _distinct(bounds[model]).items()
            if wanted and linears[linear].gathered.floor <= wanted[0]
        }
    # Backwards: the shard that the first visit ended in is still open.
    for source in reversed(ordered):
        _visit_again(source, bounds, tails)
    for model, linears in visited.items():
        for linear, each in linears.items():
            for pair, (own, of_block) in bounds[model][linear].items():
                (mass, count), (block_mass, block_count) = (
                    tails[model][linear][bound] for bound in (own, of_block)
                )
                tally.records[model][pair].append(
                    replace(
                        each.record,
                        mass=mass,
                        count=count,
                        block_mass=block_mass,
                        block_count=block_count,
                    )
                )


def _distinct(
    bounds: Mapping[Linear, Mapping[Multiples, tuple[float, float]]],
) -> dict[Linear, list[float]]:
    """Linear -> the bounds at which its tail is wanted, ascending."""
    return {
        linear: sorted({bound for pair in of_linear.values() for bound in pair})
        for linear, of_linear in bounds.items()
    }


def _in_order(records: Iterable[LinearStatistics]) -> list[LinearStatistics]:
    return sorted(records, key=lambda each: (natural_order(each.linear.tensor), each.linear.expert))


def _pairs(
    source: TensorSource, models: Iterable[Hashable]
) -> tuple[torch.Tensor | None, dict[Hashable, torch.Tensor]]:
    """The base's tensor and, of every model that has it, the tuned one; on the CPU."""
    tensors = source.load()
    base = tensors.get(source.base)
    if base is None or not base.is_floating_point():
        return None, {}
    tuned = {model: tensors[model].cpu() for model in models if model in tensors}
    for model, tensor in tuned.items():
        if tensor.shape != base.shape and not source.aligned:
            raise CheckpointError(
                f"{model}: tensor {source.name} has shape {list(tensor.shape)}; "
                f"the base model's has {list(base.shape)}."
            )
    return base.cpu(), tuned


def _visit(
    source: TensorSource,
    visited: dict[Hashable, dict[Linear, _Visited]],
    multiples: Sequence[Multiples],
    tally: _Tally,
) -> None:
    """Sum the magnitudes, count the non-zero deltas, and gather the largest of a linear."""
    base, tuned = _pairs(source, visited)
    if base is None:
        return
    for model, tensor in list(tuned.items()):
        if tensor.shape != base.shape:
            # The recipe's tokenizer aligns the two later.
            _refuse_non_finite(source.name, {source.base: base, model: tensor}, always=False)
            tally.moved.add(model)
            del tuned[model]
    held = source.linears(base.shape)
    experts = {model: linear_deltas(base, tensor, held) for model, tensor in tuned.items()}
    for expert in range(max(1, held)):
        deltas = {model: each[expert] for model, each in experts.items()}
        linear = Linear(source.name, expert)
        floors = [
            _floor(delta, multiples, tally.relative.get((model, _without_block(linear)), 0.5))
            if held
            else math.inf
            for model, delta in deltas.items()
        ]
        for (model, delta), found in zip(
            deltas.items(), _summed(list(deltas.values()), floors), strict=True
        ):
            magnitude, nonzero, gathered = found
            if not math.isfinite(magnitude):
                _refuse_non_finite(
                    source.name, {source.base: base, model: tuned[model]}, always=True
                )
            if nonzero:
                tally.moved.add(model)
            if held:
                block = block_of(source.name)
                visited[model][linear] = _Visited(
                    LinearStatistics(linear, block, delta.numel, nonzero, magnitude), gathered
                )


def _without_block(linear: Linear) -> Linear:
    block = block_of(linear.tensor)
    if block is None:
        return linear
    return replace(linear, tensor=linear.tensor.replace(f".{block.number}.", ".", 1))


def _floor(delta: Delta, multiples: Sequence[Multiples], relative: float) -> float:
    """Above what magnitude a visit gathers, so that the tails are all but sure to be among it.

    Args:
        delta: Of a linear; its mean magnitude is guessed by a sample.
        multiples: What the tails are measured at.
        relative: A guess at the mean magnitude of its block over its own.

    Returns:
        Infinity where an eighth of the magnitudes or more would have to be held.
    """
    if not multiples or delta.numel == 0:
        return math.inf
    sample = delta.sample(max(1, delta.numel // SAMPLE)).abs_().numpy()
    smallest = min(min(pair.linear, pair.of_block * relative) for pair in multiples)
    floor = smallest * float(sample.mean()) * 0.85
    return floor if numpy.count_nonzero(sample > floor) * 8 < len(sample) else math.inf


def _summed(deltas: Sequence[Delta], floors: Sequence[float]) -> list[tuple[float, int, _Gathered]]:
    """Per delta of one base: the sum of magnitudes, the non-zero ones, and those above its floor.

    Args:
        deltas: Of the same linear, or dense tensor, of several models.
        floors: (deltas,) in any of their dtypes; infinite to gather none.
    """
    if not deltas:
        return []
    lowest = [
        _largest_at_most(floor, each.dtype) for each, floor in zip(deltas, floors, strict=True)
    ]

    def work(places: Iterator[tuple[int, int]]) -> list[tuple[int, list[_ChunkSums]]]:
        readers, _ = delta_chunks(deltas)
        mask = Buffer(torch.bool, deltas[0].device)
        found = []
        for start, stop in places:
            sums = []
            for reader, floor in zip(readers, lowest, strict=True):
                values = reader.read(start, stop).abs_().numpy()
                chosen = mask.of(stop - start).numpy()
                numpy.equal(values, 0, out=chosen)
                zeros = int(numpy.count_nonzero(chosen))
                above = values[:0].copy()
                if floor < math.inf:
                    numpy.greater(values, floor, out=chosen)
                    above = values[numpy.flatnonzero(chosen)]
                # NumPy sums in one thread, so in one order; torch would split the sum.
                magnitude = float(values.sum(dtype=numpy.float64))
                sums.append(_ChunkSums(magnitude, stop - start - zeros, above))
            found.append((start, sums))
        return found

    ordered = in_order(share(work, deltas[0].chunks(), deltas[0].device))
    return [
        (
            sum(sums[i].magnitude for sums in ordered),
            sum(sums[i].nonzero for sums in ordered),
            _Gathered(floor, [sums[i].above for sums in ordered]),
        )
        for i, floor in enumerate(floors)
    ]


def _visit_again(
    source: TensorSource,
    bounds: Mapping[Hashable, Mapping[Linear, Mapping[Multiples, tuple[float, float]]]],
    tails: dict[Hashable, dict[Linear, dict[float, Tail]]],
) -> None:
    """Measure the tails that could not be read off what was gathered."""
    wanted = {
        model: {
            linear: of_linear
            for linear, of_linear in _distinct(linears).items()
            if linear.tensor == source.name and of_linear and linear not in tails[model]
        }
        for model, linears in bounds.items()
    }
    wanted = {model: linears for model, linears in wanted.items() if linears}
    if not wanted:
        return
    base, tuned = _pairs(source, wanted)
    assert base is not None
    for model, linears in wanted.items():
        deltas = linear_deltas(base, tuned[model], source.linears(base.shape))
        for linear, of_linear in linears.items():
            found = _tails(deltas[linear.expert], of_linear)
            tails[model][linear] = dict(zip(of_linear, found, strict=True))


def _tails(delta: Delta, bounds: Sequence[float]) -> list[Tail]:
    """Per bound, the sum and the number of the magnitudes above it."""

    def work(places: Iterator[tuple[int, int]]) -> list[tuple[int, list[Tail]]]:
        reader = DeltaChunks(delta)
        found = []
        for start, stop in places:
            magnitudes = reader.read(start, stop).abs_().numpy()
            found.append((start, [_tail(magnitudes, bound) for bound in bounds]))
        return found

    ordered = in_order(share(work, delta.chunks(), delta.device))
    return [_total(tails[i] for tails in ordered) for i in range(len(bounds))]


def _tail(magnitudes: Magnitudes, bound: float) -> Tail:
    """The sum, in float64, and the number of the magnitudes of one chunk above a bound."""
    limit = _largest_at_most(bound, torch.from_numpy(magnitudes).dtype)
    above = magnitudes[numpy.flatnonzero(magnitudes > limit)]
    return float(above.sum(dtype=numpy.float64)), len(above)


def _total(tails: Iterable[Tail]) -> Tail:
    mass, count = 0.0, 0
    for chunk_mass, chunk_count in tails:
        mass, count = mass + chunk_mass, count + chunk_count
    return mass, count


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
