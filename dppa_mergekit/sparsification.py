"""Sparsification: prune a delta to its kept elements, cut them into partitions, amplify each.

Partitions (paper 3.3.2, DPA): the 90 partition is what survives at pruning rate 90 %, the 80
partition what survives at 80 % and not at 90 %, and so on by tens; what lies beyond the target
density is zero, and a target that is no multiple of ten cuts its last partition short.

This is the one piece of code that prunes, partitions and amplifies; whoever needs a pruned delta,
for a tensor or for a chunk of it, calls it.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from dppa_mergekit.deltas import Delta
from dppa_mergekit.errors import ParameterError
from dppa_mergekit.parameters import AMPLIFICATIONS, DENSITY, RATES, checked
from dppa_mergekit.selection import (
    Cut,
    HashedKeys,
    Keys,
    MagnitudeKeys,
    cut,
    murmur_finaliser,
)


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
    density: float, factors: Mapping[int, float], allocate: Callable[[float], int]
) -> dict[int, int]:
    """Rate -> kept count at that rate, down to the density, where a factor needs it.

    Neighbouring partitions of one factor are one partition: their inner boundary changes nothing,
    so it is not asked for.

    Args:
        density: Target density of the linear's model.
        factors: Rate -> factor, 1 where missing.
        allocate: Density -> kept count of the linear.
    """
    reach = partition_densities(density)
    rates = list(reach)
    return {
        rate: allocate(reach[rate])
        for position, rate in enumerate(rates)
        if position == len(rates) - 1
        or factors.get(rate, 1.0) != factors.get(rates[position + 1], 1.0)
    }


@dataclass(frozen=True)
class Scaling:
    """What one linear's delta is multiplied by: nested kept sets, each with its factor.

    Attributes:
        cuts: Kept sets, the smallest and most significant first.
        factors: (cuts,) what the elements are multiplied by that are in this set and in no
            smaller one.
        keys: Gives the keys that the cuts compare; None where one cut keeps everything.
        divisor: What the delta is divided by first (DARE: the density).
    """

    cuts: tuple[Cut, ...]
    factors: tuple[float, ...]
    keys: Keys | None
    divisor: float = 1.0

    def apply_(self, offset: int, delta: torch.Tensor) -> torch.Tensor:
        """Prune and amplify, in place, the chunk of the delta that begins at `offset`."""
        if self.divisor != 1.0:
            delta.div_(self.divisor)
        if self.keys is None:
            return delta if self.factors[-1] == 1.0 else delta.mul_(self.factors[-1])
        keys = self.keys.of(offset, delta)
        scale = torch.zeros_like(delta)
        # From the largest set inwards, so that a smaller set's factor overwrites a larger one's.
        for kept, factor in zip(reversed(self.cuts), reversed(self.factors), strict=True):
            scale.masked_fill_(keys > kept.above, factor)
            ties = kept.ties_within(offset, offset + delta.numel())
            if ties.numel():
                scale[ties] = factor
        return delta.mul_(scale)


def whole(factor: float) -> Scaling:
    """The scaling of a tensor that is not pruned: one factor for its whole delta."""
    return Scaling((), (factor,), None)


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
            checked(AMPLIFICATIONS[RATES.index(rate)], factor)
        if self.selection not in ("magnitude", "random"):
            raise ParameterError(
                f"selection is {self.selection!r}; allowed is magnitude or random."
            )

    def counts(self, density: float, allocate: Callable[[float], int]) -> dict[int, int]:
        """The kept counts that `sparsify` needs for a linear; see `nested_counts`."""
        return nested_counts(checked(DENSITY, density), self.factors, allocate)

    def scaling(
        self,
        delta: Delta,
        kept_counts: Mapping[int, int],
        key: Sequence[str] = (),
        density: float | None = None,
    ) -> Scaling:
        """The scaling of one linear, to be applied chunk by chunk.

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
            return Scaling((), factors[:1], None, divisor)
        keys: Keys = MagnitudeKeys(delta)
        if self.selection == "random":
            keys = random_keys(delta, self.seed, key)
        return Scaling(cut(keys, counts, delta.device), factors, keys, divisor)

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
        """
        flat = Delta(delta.detach().reshape(-1))
        scaling = self.scaling(flat, kept_counts, key)
        result = torch.empty(flat.numel, dtype=flat.dtype, device=flat.device)
        for offset, values in flat.chunks():
            result[offset : offset + values.numel()] = scaling.apply_(offset, values)
        return result.reshape(delta.shape)


def random_keys(delta: Delta, seed: int, key: Sequence[str]) -> HashedKeys:
    """Random keys for the elements of one linear, keyed on the seed and on what names the linear.

    A counter-based generator: two rounds of the MurmurHash3 finaliser over the flat index, each
    with a 32-bit word of its own from the SHA-256 of seed and key.
    """
    text = "\0".join([str(seed), *key]).encode("utf-8", "surrogateescape")
    first, second = struct.unpack("<II", hashlib.sha256(text).digest()[:8])
    return HashedKeys(
        delta.numel,
        delta.device,
        lambda index: murmur_finaliser(murmur_finaliser(index ^ first) ^ second),
    )
