"""Prune a delta to its kept elements, and amplify each partition.

Plans and kept sets are made here, for the merge, the models in memory and AdaMerging.
`PrunedChunks` applies them; the compiled passes and `live/kept_elements.py` do the same operations
in the same order. So a factor that was tried gives, bit for bit, the weights of a merge with that
factor.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy
import torch

from dppa_mergekit.deltas.delta import Buffer, Delta, DeltaChunks, buffers, delta_chunks
from dppa_mergekit.deltas.kernel import AmplifiedDelta, CombinePass, passes_over
from dppa_mergekit.deltas.keys import Cut, HashedKeys, Keys, MagnitudeKeys
from dppa_mergekit.deltas.threads import share
from dppa_mergekit.errors import ParameterError
from dppa_mergekit.sparsification.selections import Selection
from dppa_mergekit.sparsification.threshold_search import Request, select

WriteChunks: TypeAlias = Callable[[int, int, Sequence[torch.Tensor]], None]
"""Writes elements [start, stop) of every delta, (stop - start,)."""


@dataclass(frozen=True)
class Pruning:
    """The plan for one delta: how much is kept, and the factor of each partition.

    Attributes:
        delta: Delta of one linear, or of one dense tensor.
        counts: Nested kept counts, the smallest first; empty if the whole delta is kept.
        factors: (counts,) factor of the elements that are kept at this count and not at the one
            before; one factor if the whole delta is kept.
        keys: Keys by which elements are kept; None if the whole delta is kept.
        divisor: Divisor of the delta before it is amplified (DARE: the density).
        rates: (counts,) pruning rate down to which each factor holds; one for a linear that is kept
            whole, none for a dense tensor.
    """

    delta: Delta
    counts: tuple[int, ...]
    factors: tuple[float, ...]
    keys: Keys | None
    divisor: float = 1.0
    rates: tuple[int, ...] = ()

    @classmethod
    def keep_all(
        cls, delta: Delta, factor: float, divisor: float = 1.0, rates: tuple[int, ...] = ()
    ) -> "Pruning":
        """Keep the whole delta, at one factor."""
        return cls(delta, (), (factor,), None, divisor, rates)


def plan_pruning(
    delta: Delta,
    kept_counts: Mapping[int, int],
    factors: Mapping[int, float],
    selection: Selection,
    name: Sequence[str] = (),
    density: float | None = None,
) -> Pruning:
    """Plan how one linear is pruned and amplified.

    Args:
        delta: Delta of the linear.
        kept_counts: Rate -> number of elements kept at that rate; the lower the rate, the larger
            the count (or equal). The factor of a rate holds for elements kept there and at no
            higher rate given.
        factors: Rate -> factor of its partition; 1 if missing.
        selection: Which elements are kept.
        name: Model, tensor and expert; tells the random selection of this linear from others.
        density: Density by which a rescaling selection divides; the largest count over the number
            of elements where None.

    Raises:
        ParameterError: The counts are not possible.
        ValueError: The selection divides the delta, and orders elements by the delta.
    """
    rates = sorted(kept_counts, reverse=True)
    counts = [kept_counts[rate] for rate in rates]
    if not rates or counts != sorted(counts) or not 0 <= counts[0] <= counts[-1] <= delta.numel:
        raise ParameterError(
            f"The kept counts are {dict(kept_counts)}; they must not fall from rate 90 down, "
            f"and lie from 0 to the {delta.numel} elements."
        )
    of_rates = tuple(float(factors.get(rate, 1.0)) for rate in rates)
    divisor = 1.0
    if counts[-1] > 0:
        divisor = selection.divisor(counts[-1] / delta.numel if density is None else density)
    if counts[0] == delta.numel:
        return Pruning.keep_all(delta, of_rates[0], divisor, (rates[0],))
    keys = selection.keys(delta, name)
    if divisor != 1.0 and isinstance(keys, MagnitudeKeys):
        # Chunks are divided before their elements are chosen.
        raise ValueError("a selection that divides the delta cannot order elements by magnitude")
    return Pruning(delta, tuple(counts), of_rates, keys, divisor, tuple(rates))


@dataclass(frozen=True)
class Pruned:
    """A pruned delta: its plan, and the kept set of each count; none if all is kept."""

    pruning: Pruning
    cuts: tuple[Cut, ...]

    def partitions(self) -> "list[Pruned]":
        """Each partition alone, at factor 1; none of a dense tensor."""
        number = len(self.pruning.rates)
        return [
            Pruned(replace(self.pruning, factors=tuple(map(float, row))), self.cuts)
            for row in numpy.eye(number)
        ]

    def amplified(self, weight: float) -> AmplifiedDelta | None:
        """The delta as the compiled pass takes it; None if that pass does not know it."""
        keys, divisor = self.pruning.keys, self.pruning.divisor
        words = keys.words if isinstance(keys, HashedKeys) else None
        known = words is not None or isinstance(keys, MagnitudeKeys | None)
        passes = passes_over(self.pruning.delta) if known else None
        if passes is None:
            return None
        cuts = self.cuts or (Cut(-1),)
        return AmplifiedDelta(passes, cuts, self.pruning.factors, weight, divisor, words)


def prune(prunings: Sequence[Pruning]) -> list[Pruned]:
    """Find the kept sets of several plans together, since deltas from one base share work.

    Args:
        prunings: Plans for deltas of one size, device and base: one linear in several models.
    """
    requests = [
        Request(pruning.delta, pruning.keys, pruning.counts)
        for pruning in prunings
        if pruning.keys is not None
    ]
    selected = iter(select(requests))
    return [Pruned(pruning, () if pruning.keys is None else next(selected)) for pruning in prunings]


def amplify(pruned: Sequence[Pruned], weights: Sequence[float]) -> list[AmplifiedDelta] | None:
    """Deltas of one base as the compiled passes take them; None if those do not know all.

    Args:
        pruned: At least one.
        weights: Of each; multiplies the amplified delta.
    """
    models = [one.amplified(weight) for one, weight in zip(pruned, weights, strict=True)]
    known = [model for model in models if model is not None]
    if len(known) < len(models) or len({model.passes.base.dtype for model in known}) > 1:
        return None
    return known


def open_chunks(pruned: Sequence[Pruned], weights: Sequence[float]) -> Callable[[], WriteChunks]:
    """A function that opens a writer of weighted, amplified, pruned deltas for one thread.

    Args:
        pruned: At least one, of one base and dtype.
        weights: Of each; multiplies the amplified delta.
    """
    models = amplify(pruned, weights)
    if models is not None:
        return lambda: CombinePass(models, False, None, 1.0, math.inf).amplify
    deltas = [one.pruning.delta for one in pruned]

    def open_writer() -> WriteChunks:
        readers, _ = delta_chunks(deltas)
        kept = buffers(3, deltas[0].dtype, deltas[0].device)
        chunks = [
            PrunedChunks(one, reader, kept) for one, reader in zip(pruned, readers, strict=True)
        ]

        def write(start: int, stop: int, values: Sequence[torch.Tensor]) -> None:
            for chunk, weight, part in zip(chunks, weights, values, strict=True):
                chunk.add_to(part.zero_(), weight, start, stop)

        return write

    return open_writer


def materialize(pruned: Pruned, weight: float = 1.0) -> torch.Tensor:
    """The whole weighted, amplified, pruned delta, (numel,), in its dtype."""
    delta = pruned.pruning.delta
    result = torch.empty(delta.numel, dtype=delta.dtype, device=delta.device)
    open_writer = open_chunks([pruned], [weight])

    def work(spans: Iterator[tuple[int, int]]) -> None:
        write = open_writer()
        for start, stop in spans:
            write(start, stop, [result[start:stop]])

    share(work, delta.chunks(), delta.device)
    return result


class PrunedChunks:
    """A pruned, amplified delta, a chunk at a time; for one thread."""

    def __init__(self, pruned: Pruned, delta: DeltaChunks, kept: Sequence[Buffer]) -> None:
        """Prepare to read chunks.

        Args:
            pruned: The pruned delta.
            delta: Reader of the whole delta.
            kept: Three buffers, which the readers of other deltas in this thread may share.
        """
        self._pruning = pruned.pruning
        self._cuts = pruned.cuts
        self._delta = delta
        self._kept = kept
        self._keys = Buffer(pruned.pruning.delta.dtype, pruned.pruning.delta.device)

    def add_to(self, total: torch.Tensor, weight: float, start: int, stop: int) -> None:
        """Add weight times the chunk [start, stop) to `total`, (stop - start,)."""
        total.add_(self._read(start, stop).mul_(weight))

    def _read(self, start: int, stop: int) -> torch.Tensor:
        """The chunk [start, stop); the caller may change it, and it holds until the next read.

        A partition is the difference of two nested kept sets. No element is in two partitions, so
        differences and sums are exact, and each element is multiplied by its factor alone.
        """
        delta = self._delta.read(start, stop)
        if self._pruning.divisor != 1.0:
            delta.div_(self._pruning.divisor)
        if self._pruning.keys is None:
            return _scale(delta, self._pruning.factors[-1])
        sieve = self._pruning.keys.sieve(start, delta)
        total: torch.Tensor | None = None
        larger: torch.Tensor | None = None
        of_larger = 1.0
        # From the largest set down. A set less the next smaller one is a partition, in the memory
        # of the set. Buffer 0 collects the sum; buffers 1 and 2 take turns for the smaller sets.
        for turn, (cut, factor) in enumerate(
            zip(reversed(self._cuts), reversed(self._pruning.factors), strict=True)
        ):
            kept = self._kept[1 + turn % 2 if turn else 0].of(stop - start)
            sieve(cut.above, kept)
            if cut.last >= 0:
                ties = cut.ties(start, self._pruning.keys.chunk(start, delta, self._keys))
                kept.index_copy_(0, ties, delta.index_select(0, ties))
            if larger is not None:
                total = _add(total, _scale(larger.sub_(kept), of_larger))
            larger, of_larger = kept, factor
        assert larger is not None
        return _add(total, _scale(larger, of_larger))


def _scale(values: torch.Tensor, factor: float) -> torch.Tensor:
    return values if factor == 1.0 else values.mul_(factor)


def _add(total: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    return values if total is None else total.add_(values)
