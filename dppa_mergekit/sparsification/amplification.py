"""Sparsification: prune a delta to its kept elements, cut them into partitions, amplify each.

Partitions (paper 3.3.2, DPA): the 90 partition is what survives at pruning rate 90 %, the 80
partition what survives at 80 % and not at 90 %, and so on by tens; what lies beyond the target
density is zero, and a target that is no multiple of ten cuts its last partition short.

This is the one piece of code that prunes, partitions and amplifies; whoever needs a pruned delta,
for a tensor or for a chunk of it, calls it.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch

from dppa_mergekit.deltas.delta import Buffer, Delta, DeltaChunks, buffers, delta_chunks
from dppa_mergekit.deltas.kernel import AmplifiedDelta, passes_over, randomize
from dppa_mergekit.deltas.keys import Cut, HashedKeys, Keys, MagnitudeKeys, murmur_finaliser
from dppa_mergekit.deltas.threads import share
from dppa_mergekit.errors import ParameterError
from dppa_mergekit.parameters import AMPLIFICATIONS, DENSITY, RATES, check_number
from dppa_mergekit.sparsification.selection import Request, select


def partition_densities(density: float) -> dict[int, float]:
    """Rate -> density down to which its partition reaches, for all partitions within a density.

    At density 0.25: {90: 0.1, 80: 0.2, 70: 0.25}.
    """
    reach: dict[int, float] = {}
    for rate in RATES:
        full = (100 - rate) / 100
        reach[rate] = min(full, density)
        if full >= density:
            break
    return reach


def nested_counts(
    density: float,
    factors: Mapping[int, float],
    allocate: Callable[[float], int],
    apart: bool = False,
) -> dict[int, int]:
    """Rate -> kept count at that rate, down to the density, where a factor needs it.

    Neighbouring partitions of one factor are one partition: their inner boundary changes nothing,
    so it is not asked for; unless all are to be kept apart, since factors will change.

    Args:
        density: Target density of the linear's model.
        factors: Rate -> factor, 1 where missing.
        allocate: Density -> kept count of the linear.
        apart: Whether every partition is wanted.
    """
    reach = partition_densities(density)
    rates = list(reach)
    return {
        rate: allocate(reach[rate])
        for position, rate in enumerate(rates)
        if apart
        or position == len(rates) - 1
        or factors.get(rate, 1.0) != factors.get(rates[position + 1], 1.0)
    }


@dataclass(frozen=True)
class Pruning:
    """What is to be pruned of a delta, and how what is left is amplified.

    Attributes:
        delta: Of one linear, or of one dense tensor.
        counts: Nested kept counts, the smallest first.
        factors: (counts,) what the elements are multiplied by that are kept at this count and at
            no smaller one.
        keys: What elements are kept by; None where all are, at the last factor.
        divisor: What the delta is divided by first (DARE: the density).
        rates: (counts,) the pruning rate down to which each factor holds; none if dense.
    """

    delta: Delta
    counts: tuple[int, ...]
    factors: tuple[float, ...]
    keys: Keys | None
    divisor: float = 1.0
    rates: tuple[int, ...] = ()

    @classmethod
    def none(
        cls, delta: Delta, factor: float, divisor: float = 1.0, rates: tuple[int, ...] = ()
    ) -> "Pruning":
        """Of a delta that is not pruned: one factor for all of it."""
        return cls(delta, (), (factor,), None, divisor, rates)


@dataclass(frozen=True)
class Pruned:
    """A pruned delta: the pruning, and the kept set of each of its counts; none if all is kept."""

    pruning: Pruning
    cuts: tuple[Cut, ...]

    def amplified(self, weight: float) -> AmplifiedDelta | None:
        """What the compiled pass adds of it, if there is one for it."""
        known = isinstance(self.pruning.keys, MagnitudeKeys | None) and self.pruning.divisor == 1
        passes = passes_over(self.pruning.delta) if known else None
        if passes is None:
            return None
        return AmplifiedDelta(passes, self.cuts or (Cut(-1),), self.pruning.factors, weight)


def prune(prunings: Sequence[Pruning]) -> list[Pruned]:
    """Find what every pruning keeps; together, since the deltas of several models share work.

    Args:
        prunings: Of deltas of one size, device and base, as of one linear in several models.
    """
    selected = iter(
        select(
            [
                Request(each.delta, each.keys, each.counts)
                for each in prunings
                if each.keys is not None
            ]
        )
    )
    return [Pruned(each, () if each.keys is None else next(selected)) for each in prunings]


class PrunedChunks:
    """A pruned, amplified delta, a chunk at a time; for one thread."""

    def __init__(self, pruned: Pruned, delta: DeltaChunks, kept: Sequence[Buffer]) -> None:
        """Read a pruned delta, given what reads the delta, and three buffers that others share."""
        self._pruning = pruned.pruning
        self._cuts = pruned.cuts
        self._delta = delta
        self._kept = kept
        self._keys = Buffer(pruned.pruning.delta.dtype, pruned.pruning.delta.device)

    def add_to(self, total: torch.Tensor, weight: float, start: int, stop: int) -> None:
        """Add the chunk [start, stop), times a weight."""
        total.add_(self._read(start, stop).mul_(weight))

    def _read(self, start: int, stop: int) -> torch.Tensor:
        """The chunk [start, stop); to be changed at will, until the next.

        A partition is the difference of two nested kept sets. No element is in two of them, so
        differences and sums are exact, and each element is multiplied by its factor alone.
        """
        delta = self._delta.read(start, stop)
        if self._pruning.divisor != 1.0:
            delta.div_(self._pruning.divisor)
        if self._pruning.keys is None:
            return _scaled(delta, self._pruning.factors[-1])
        sieve = self._pruning.keys.sieve(start, delta)
        total: torch.Tensor | None = None
        larger: torch.Tensor | None = None
        of_larger = 1.0
        # From the largest set down: what is left of a set is its partition, in the same memory.
        for turn, (cut, factor) in enumerate(
            zip(reversed(self._cuts), reversed(self._pruning.factors), strict=True)
        ):
            kept = self._kept[1 + turn % 2 if turn else 0].of(stop - start)
            sieve(cut.above, kept)
            if cut.last >= 0:
                ties = cut.ties(start, self._pruning.keys.chunk(start, delta, self._keys))
                kept.index_copy_(0, ties, delta.index_select(0, ties))
            if larger is not None:
                total = _sum(total, _scaled(larger.sub_(kept), of_larger))
            larger, of_larger = kept, factor
        assert larger is not None
        return _sum(total, _scaled(larger, of_larger))


def _scaled(values: torch.Tensor, factor: float) -> torch.Tensor:
    return values if factor == 1.0 else values.mul_(factor)


def _sum(total: torch.Tensor | None, values: torch.Tensor) -> torch.Tensor:
    return values if total is None else total.add_(values)


@dataclass(frozen=True)
class PartitionAmplification:
    """DPA on one linear: partitions by magnitude (DPPA) or at random (DARE + DPA), amplified.

    With factor 1 everywhere it is plain pruning.

    Attributes:
        factors: Pruning rate in percent (90, 80, ..., 0) -> factor of its partition; 1 if missing.
        selection: "magnitude" keeps the largest deltas; "random" any, by a generator keyed on
            (seed, key), and divides the delta by its density first, as DARE does.
        seed: Seed of the random selection.

    Raises:
        ParameterError: A rate is not one of the partitions', or a factor is not allowed.
    """

    factors: Mapping[int, float] = field(default_factory=dict)
    selection: Literal["magnitude", "random"] = "magnitude"
    seed: int = 0

    def __post_init__(self) -> None:
        for rate, factor in self.factors.items():
            if rate not in RATES:
                raise ParameterError(
                    f"There is no {rate} partition; allowed are {', '.join(map(str, RATES))}."
                )
            check_number(AMPLIFICATIONS[RATES.index(rate)], factor)
        if self.selection not in ("magnitude", "random"):
            raise ParameterError(
                f"selection is {self.selection!r}; allowed is magnitude or random."
            )

    def counts(
        self, density: float, allocate: Callable[[float], int], apart: bool = False
    ) -> dict[int, int]:
        """The kept counts that `sparsify` needs for a linear; see `nested_counts`."""
        return nested_counts(check_number(DENSITY, density), self.factors, allocate, apart)

    def pruning(
        self,
        delta: Delta,
        kept_counts: Mapping[int, int],
        key: Sequence[str] = (),
        density: float | None = None,
    ) -> Pruning:
        """What is to be pruned of one linear, and how it is amplified.

        Args:
            delta: The linear's delta.
            kept_counts: Rate -> number of elements kept at that rate; never falling with the rate.
                The factor of a rate holds for what is kept there and at no higher rate given.
            key: What tells this linear's random selection from others': model and tensor.
            density: What a random selection's delta is divided by; the largest count over the
                number of elements where None.
        """
        rates = sorted(kept_counts, reverse=True)
        counts = [kept_counts[rate] for rate in rates]
        if not rates or counts != sorted(counts) or not 0 <= counts[0] <= counts[-1] <= delta.numel:
            raise ParameterError(
                f"The kept counts are {dict(kept_counts)}; they must not fall from rate 90 down, "
                f"and lie from 0 to the {delta.numel} elements."
            )
        factors = tuple(float(self.factors.get(rate, 1.0)) for rate in rates)
        divisor = 1.0
        if self.selection == "random" and counts[-1] > 0:
            divisor = counts[-1] / delta.numel if density is None else density
        if counts[0] == delta.numel:
            return Pruning.none(delta, factors[0], divisor, (rates[0],))
        keys: Keys = MagnitudeKeys(delta)
        if self.selection == "random":
            keys = random_keys(delta, self.seed, key)
        return Pruning(delta, tuple(counts), factors, keys, divisor, tuple(rates))

    def sparsify(
        self, delta: torch.Tensor, kept_counts: Mapping[int, int], key: Sequence[str] = ()
    ) -> torch.Tensor:
        """The pruned, amplified delta.

        Args:
            delta: Any shape, floating; borrowed. The elements of the whole tensor are one linear.
            kept_counts: Rate -> number of elements kept at that rate, as `counts` gives them.
            key: What tells this linear's random selection from others'.

        Returns:
            A new tensor of the shape, in float32 (float64 for a float64 delta).

        Raises:
            ParameterError: The delta is not finite, or the counts are not possible.
        """
        flat = Delta(delta.detach().reshape(-1))
        if not all(
            torch.isfinite(flat.fine_tuned[start:stop]).all() for start, stop in flat.chunks()
        ):
            raise ParameterError("The delta holds NaN or infinity; allowed are finite numbers.")
        (pruned,) = prune([self.pruning(flat, kept_counts, key)])
        result = torch.zeros(flat.numel, dtype=flat.dtype, device=flat.device)

        def work(places: Iterator[tuple[int, int]]) -> None:
            (reader,), _ = delta_chunks([flat])
            chunks = PrunedChunks(pruned, reader, buffers(3, flat.dtype, flat.device))
            for start, stop in places:
                chunks.add_to(result[start:stop], 1.0, start, stop)

        share(work, flat.chunks(), flat.device)
        return result.reshape(delta.shape)


def random_keys(delta: Delta, seed: int, key: Sequence[str]) -> HashedKeys:
    """Random keys for the elements of one linear, keyed on the seed and on what names the linear.

    A counter-based generator: two rounds of the MurmurHash3 finaliser over the flat index, each
    with a 32-bit word of its own from the SHA-256 of seed and key.
    """
    text = "\0".join([str(seed), *key]).encode("utf-8", "surrogateescape")
    first, second = struct.unpack("<II", hashlib.sha256(text).digest()[:8])
    return HashedKeys(delta.numel, delta.device, partial(_random, first, second))


def _random(first: int, second: int, index: torch.Tensor) -> torch.Tensor:
    if randomize(index, first, second):
        return index
    return murmur_finaliser(murmur_finaliser(index ^ first) ^ second)
