"""The statistics of a whole model's deltas, measured in one pass; NaN and infinity are refused.

Tensors are read one set at a time (the base's and every fine-tuned model's), block by block, on
the CPU. Each is read once: its magnitudes are summed, its zeros counted, and the largest
magnitudes of a linear gathered. Once the mean of the block is known, the tails are read off the
gathered magnitudes. A linear is read a second time if these do not reach down to its bound: the
guessed mean was too high, or so many lay above the bound that none were held. Sums are in float64
over chunks of fixed length, so they depend neither on the number of threads nor on the order of
the tensors.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain, repeat

import torch

from dppa_mergekit.allocation.magnitudes import Gathered, Tail, floor_below, sums, tails
from dppa_mergekit.allocation.statistics import (
    LinearStatistics,
    ModelStatistics,
    Multiples,
    Statistics,
)
from dppa_mergekit.deltas.delta import linear_deltas
from dppa_mergekit.errors import CheckpointError
from dppa_mergekit.report.progress import Progress
from dppa_mergekit.tensor_names import Block, Linear, block_of, linears_in, natural_order


@dataclass(frozen=True)
class TensorSource:
    """One tensor of the base and of every fine-tuned model, read on demand.

    Attributes:
        name: Name of the tensor.
        base: Key of the base model in the result of `load`.
        load: Returns model -> tensor, borrowed; a model without the tensor is left out.
        linears: Returns, for a shape, the number of linears in the tensor.
        aligned: Whether vocabularies may still differ, since mergekit aligns them later.
        shard: File of the base that holds the tensor; sources of one shard are read together.
        read_ahead: Called while another tensor is measured, to begin reading this one.
    """

    name: str
    base: Hashable
    load: Callable[[], Mapping[Hashable, torch.Tensor]]
    linears: Callable[[Sequence[int]], int]
    aligned: bool = False
    shard: str = ""
    read_ahead: Callable[[], None] = lambda: None


Found = dict[Hashable, dict[Multiples | None, list[LinearStatistics]]]


@dataclass
class _Tally:
    """The findings of the visits so far.

    Attributes:
        multiples: The multiples at which tails are measured.
        records: Model -> its records at each pair of multiples.
        moved: The models whose delta is not zero everywhere.
        relative: Model, and name of a linear without its block -> mean magnitude of the block over
            that of the linear, in the last block that was measured.
    """

    multiples: Sequence[Multiples]
    records: Found
    moved: set[Hashable] = field(default_factory=set)
    relative: dict[tuple[Hashable, Linear], float] = field(default_factory=dict)

    def smallest_multiple(self, model: Hashable, linear: Linear) -> float:
        """The smallest multiple of a linear's own mean at which a tail is expected to begin."""
        relative = self.relative.get((model, _without_block(linear)), 0.5)
        return min(
            (min(pair.linear, pair.of_block * relative) for pair in self.multiples),
            default=math.inf,
        )


def measure(
    sources: Iterable[TensorSource],
    models: Sequence[Hashable],
    multiples: Iterable[Multiples],
    progress: Callable[[int], AbstractContextManager[Progress]] | None = None,
) -> dict[Hashable, Statistics]:
    """The statistics of every model at every pair of multiples, and at None without tails.

    Args:
        sources: All tensors of the models, in any order.
        models: Keys of the fine-tuned models.
        multiples: The multiples at which tails are measured.
        progress: Opens a progress bar over a number of tensors.

    Raises:
        CheckpointError: A tensor holds NaN or infinity, or its shape is not the base's.
    """
    wanted = tuple(dict.fromkeys(multiples))
    units: dict[Block | str, list[TensorSource]] = {}
    for source in sorted(sources, key=lambda source: natural_order(source.name)):
        units.setdefault(block_of(source.name) or source.name, []).append(source)
    ordered = [
        sorted(unit, key=lambda source: natural_order(source.shard))
        for unit in sorted(units.values(), key=lambda unit: natural_order(unit[0].shard))
    ]
    tally = _Tally(wanted, {model: {key: [] for key in (None, *wanted)} for model in models})
    every = list(chain.from_iterable(ordered))
    following = chain(every[1:], repeat(None))
    with nullcontext() if progress is None else progress(len(every)) as bar:
        for unit in ordered:
            _measure_unit(unit, following, tally, bar)
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
    fine_tuned: Mapping[str, torch.Tensor],
    multiples: Multiples | None = None,
) -> ModelStatistics:
    """The statistics of one fine-tuned model in memory.

    Args:
        base: Name -> tensor of the base model.
        fine_tuned: Name -> tensor of the fine-tuned model, with the same names and shapes.
        multiples: N of linears and blocks; 5 and 5 where None.

    Raises:
        CheckpointError: A tensor holds NaN or infinity, its shape is not the base's, or it is
            missing in the fine-tuned model.

    Example:
        >>> import torch
        >>> from dppa_mergekit import delta_statistics
        >>> base = {"layers.0.up.weight": torch.zeros(4, 5)}
        >>> fine_tuned = {"layers.0.up.weight": torch.ones(4, 5)}
        >>> (record,) = delta_statistics(base, fine_tuned).linears
        >>> record.numel, record.nonzero, record.magnitude
        (20, 20, 20.0)
    """
    missing = [name for name in base if name not in fine_tuned]
    if missing:
        raise CheckpointError(f"The fine-tuned model has no tensor {missing[0]}.")
    chosen = multiples or Multiples()

    def source(name: str) -> TensorSource:
        return TensorSource(
            name,
            "base",
            lambda: {"base": base[name], "fine_tuned": fine_tuned[name]},
            lambda shape: linears_in(name, shape),
        )

    sources = [source(name) for name in base if base[name].is_floating_point()]
    return measure(sources, ["fine_tuned"], [chosen])["fine_tuned"][chosen]


@dataclass(frozen=True)
class _Visited:
    """A linear after the first visit: its record without tails, and its largest magnitudes."""

    record: LinearStatistics
    gathered: Gathered


def _measure_unit(
    unit: Sequence[TensorSource],
    following: Iterator[TensorSource | None],
    tally: _Tally,
    bar: Progress | None,
) -> None:
    """Measure the tensors of one block, or one tensor outside blocks.

    Args:
        unit: The tensors, in the order of the first visit.
        following: Yields, for each of them, the tensor that is visited next.
        tally: The findings are added to it.
        bar: Progress bar to advance.
    """
    visited: dict[Hashable, dict[Linear, _Visited]] = {model: {} for model in tally.records}
    for source, upcoming in zip(unit, following, strict=False):
        if upcoming is not None:
            upcoming.read_ahead()
        _visit(source, visited, tally)
        if bar is not None:
            bar.update(1)
    bounds = {model: _bounds(linears, model, tally) for model, linears in visited.items()}
    found: dict[Hashable, dict[Linear, dict[float, Tail]]] = {model: {} for model in visited}
    missing: dict[str, dict[Hashable, dict[Linear, list[float]]]] = {}
    for model, linears in visited.items():
        for linear, visit in linears.items():
            wanted = sorted({bound for pair in bounds[model][linear].values() for bound in pair})
            if not wanted:
                continue
            if visit.gathered.floor <= wanted[0]:
                found[model][linear] = {bound: visit.gathered.tail(bound) for bound in wanted}
            else:
                missing.setdefault(linear.tensor, {}).setdefault(model, {})[linear] = wanted
    # Backwards, since the shard in which the first visit ended is still open.
    for source in reversed(unit):
        if source.name in missing:
            _visit_again(source, missing[source.name], found)
    for model, linears in visited.items():
        for linear, visit in linears.items():
            for pair, (own, of_block) in bounds[model][linear].items():
                (mass, count), (block_mass, block_count) = (
                    found[model][linear][bound] for bound in (own, of_block)
                )
                tally.records[model][pair].append(
                    replace(
                        visit.record,
                        mass=mass,
                        count=count,
                        block_mass=block_mass,
                        block_count=block_count,
                    )
                )


def _bounds(
    linears: Mapping[Linear, _Visited], model: Hashable, tally: _Tally
) -> dict[Linear, dict[Multiples, tuple[float, float]]]:
    """Linear -> multiples -> bounds of its tails, by its own mean and by that of its block.

    The tally takes the records so far, and the ratios of means that the next block may expect.
    """
    records = _in_order(visit.record for visit in linears.values())
    tally.records[model][None].extend(records)
    numel = sum(record.numel for record in records)
    of_block = sum(record.magnitude for record in records) / max(1, numel)
    bounds = {}
    for record in records:
        own = record.magnitude / max(1, record.numel)
        if own > 0:
            tally.relative[model, _without_block(record.linear)] = of_block / own
        bounds[record.linear] = {
            pair: (pair.linear * own, pair.of_block * of_block) for pair in tally.multiples
        }
    return bounds


def _in_order(records: Iterable[LinearStatistics]) -> list[LinearStatistics]:
    return sorted(
        records, key=lambda record: (natural_order(record.linear.tensor), record.linear.expert)
    )


def _pairs(
    source: TensorSource, models: Iterable[Hashable]
) -> tuple[torch.Tensor | None, dict[Hashable, torch.Tensor]]:
    """The base's tensor, and model -> its tensor, for the models that have it; on the CPU."""
    tensors = source.load()
    base = tensors.get(source.base)
    if base is None or not base.is_floating_point():
        return None, {}
    fine_tuned = {model: tensors[model].cpu() for model in models if model in tensors}
    for model, tensor in fine_tuned.items():
        if tensor.shape != base.shape and not source.aligned:
            raise CheckpointError(
                f"{model}: tensor {source.name} has shape {list(tensor.shape)}; "
                f"the base model's has {list(base.shape)}."
            )
    return base.cpu(), fine_tuned


def _visit(
    source: TensorSource,
    visited: dict[Hashable, dict[Linear, _Visited]],
    tally: _Tally,
) -> None:
    """Sum the magnitudes, count the non-zero deltas, and gather a linear's largest magnitudes."""
    base, fine_tuned = _pairs(source, visited)
    if base is None:
        return
    for model, tensor in list(fine_tuned.items()):
        if tensor.shape != base.shape:
            # mergekit aligns the two vocabularies later.
            _refuse_non_finite(source.name, {source.base: base, model: tensor}, always=False)
            tally.moved.add(model)
            del fine_tuned[model]
    held = source.linears(base.shape)
    experts = {model: linear_deltas(base, tensor, held) for model, tensor in fine_tuned.items()}
    for expert in range(max(1, held)):
        deltas = {model: of_model[expert] for model, of_model in experts.items()}
        linear = Linear(source.name, expert)
        floors = [
            floor_below(delta, tally.smallest_multiple(model, linear)) if held else math.inf
            for model, delta in deltas.items()
        ]
        for (model, delta), found in zip(
            deltas.items(), sums(list(deltas.values()), floors), strict=True
        ):
            if not math.isfinite(found.magnitude):
                _refuse_non_finite(
                    source.name, {source.base: base, model: fine_tuned[model]}, always=True
                )
            if found.nonzero:
                tally.moved.add(model)
            if held:
                visited[model][linear] = _Visited(
                    LinearStatistics(
                        linear,
                        block_of(source.name),
                        delta.numel,
                        found.nonzero,
                        found.magnitude,
                    ),
                    found.gathered,
                )


def _without_block(linear: Linear) -> Linear:
    block = block_of(linear.tensor)
    if block is None:
        return linear
    return replace(linear, tensor=linear.tensor.replace(f".{block.number}.", ".", 1))


def _visit_again(
    source: TensorSource,
    missing: Mapping[Hashable, Mapping[Linear, Sequence[float]]],
    found: Mapping[Hashable, dict[Linear, dict[float, Tail]]],
) -> None:
    """Measure the tails that could not be read off the gathered magnitudes."""
    base, fine_tuned = _pairs(source, missing)
    assert base is not None
    for model, linears in missing.items():
        deltas = linear_deltas(base, fine_tuned[model], source.linears(base.shape))
        for linear, bounds in linears.items():
            measured = tails(deltas[linear.expert], bounds)
            found[model][linear] = dict(zip(bounds, measured, strict=True))


def _refuse_non_finite(name: str, tensors: Mapping[Hashable, torch.Tensor], always: bool) -> None:
    """Raise for the first of the tensors that holds NaN or infinity.

    Args:
        name: Name of the tensor.
        tensors: Model -> its tensor.
        always: Raise in any case, since the delta itself is not finite.
    """
    for model, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            # Only float16 is so narrow that the recipe's cast may be the reason.
            narrow = " in float16, which ends at 65504" * (tensor.dtype == torch.float16)
            raise CheckpointError(f"{model}: tensor {name} holds NaN or infinity{narrow}.")
    if always:
        raise CheckpointError(
            f"{' and '.join(str(model) for model in tensors)}: the difference of tensor {name} "
            f"is too large for its dtype."
        )
