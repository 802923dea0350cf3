"""The results of an analysis: the content of `analysis.json`.

Plain data and pure functions. Rates are in percent, shares from 0 to 1. The fields' names are keys
of files that users have, so they stay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from dppa_mergekit.analysis.evidence import noise_of
from dppa_mergekit.recipes.references import short_name

RATES = (90, 80)
"""The pruning rates at which kept elements are analysed, in percent."""

PROFILE_POINTS = 21
"""The number of points of a profile of rows or columns."""

UNPRUNED = "unpruned"
"""The key of the overlap before pruning; the other keys are rates."""

Counts = NDArray[numpy.int64]


@dataclass(frozen=True)
class TensorClass:
    """The class of one tensor of the merge: linear or dense.

    Attributes:
        name: The tensor's name.
        shape: The tensor's shape.
        linears: How many linears it holds; 0 if it is dense.
        dense_because: Why it is dense; None if it holds linears.
    """

    name: str
    shape: tuple[int, ...]
    linears: int
    dense_because: str | None


@dataclass(frozen=True)
class Offsets:
    """The distribution of the deltas of all linears of a model (paper Tables 4 and 8).

    Attributes:
        minimum: The smallest delta, exact.
        deciles: (9,) the 10 % ... 90 % quantiles, to a relative error of 2^-8.
        maximum: The largest delta, exact.
        zeros: The share of deltas that are zero.
        deviation: The root of the mean squared delta.
        relative: The deviation over the root of the mean square of the base's weights.
        histogram: (bins,) the share of deltas in each of the equally wide bins from -`reach` to
            `reach`; the deltas beyond are in none.
        reach: The larger of the magnitudes of the 0.1 % and the 99.9 % quantile.
    """

    minimum: float
    deciles: tuple[float, ...]
    maximum: float
    zeros: float
    deviation: float
    relative: float
    histogram: tuple[float, ...]
    reach: float


@dataclass(frozen=True)
class Structure:
    """How the kept elements of a linear are spread over its rows and columns (paper Fig. 3).

    Attributes:
        kept: The share of elements that are kept.
        rows_with_half: The smallest share of rows that hold half of the kept elements; 0.5 if all
            rows hold equally many, 0 if none is kept.
        columns_with_half: The same for columns.
        rows: (21,) the kept share of a row, at evenly spaced ranks from the fullest row to the
            emptiest.
        columns: (21,) the same for columns.
    """

    kept: float
    rows_with_half: float
    columns_with_half: float
    rows: tuple[float, ...]
    columns: tuple[float, ...]


@dataclass(frozen=True)
class LinearAnalysis:
    """One linear of one model.

    Attributes:
        tensor: The name of the tensor that holds it.
        expert: Its index in a tensor of stacked experts; else 0.
        kind: Its name within the block, such as `mlp.up_proj`.
        numel: The number of elements.
        magnitude: The mean |delta|.
        significance: As the recipe measures it; None if its allocation needs none.
        kept: The number of elements that the recipe keeps.
        structure: Rate -> how the kept elements are spread at that rate.
    """

    tensor: str
    expert: int
    kind: str
    numel: int
    magnitude: float
    significance: float | None
    kept: int
    structure: Mapping[int, Structure]

    @property
    def density(self) -> float:
        """The share of elements that the recipe keeps."""
        return self.kept / self.numel


@dataclass(frozen=True)
class BlockAnalysis:
    """One block of one model: the same measures as for a linear.

    Attributes:
        stack: The name of its stack, such as `model.layers`.
        number: Its number in the stack.
        numel: The number of elements of its linears.
        magnitude: The mean |delta| over them.
        significance: That of all its linears as one set; None if the allocation needs none.
        kept: The number of elements that the recipe keeps.
    """

    stack: str
    number: int
    numel: int
    magnitude: float
    significance: float | None
    kept: int

    @property
    def density(self) -> float:
        """The share of elements that the recipe keeps."""
        return self.kept / self.numel


@dataclass(frozen=True)
class Divergences:
    """Mean Kullback-Leibler divergences from a fine-tuned model, in nats per token of its answers.

    Attributes:
        dare: That of the model pruned by `dare_dpa`, DARE on the linears, at the recipe's density.
        dp: That of the model pruned by DP at the same density.
        prompts: The number of prompts that the model answered.
        dare_linear: That of the model pruned by mergekit's `dare_linear` at the same density.
    """

    dare: float
    dp: float
    prompts: int
    dare_linear: float | None = None

    @property
    def by_method(self) -> dict[str, float]:
        """Method -> divergence, the simplest method first."""
        found = {} if self.dare_linear is None else {"dare_linear": self.dare_linear}
        return {**found, "dare_dpa": self.dare, "dp": self.dp}


@dataclass(frozen=True)
class MergeDivergences:
    """Mean divergences of one merge from its fine-tuned models, in nats per token of their answers.

    Attributes:
        combination: How the deltas were combined, in words.
        method: The merge method.
        weight: The weight that all models shared, the best of a few; None if none was chosen.
        of_models: Fine-tuned model -> the divergence from its answers to its prompts.
    """

    combination: str
    method: str
    weight: float | None
    of_models: Mapping[str, float]

    @property
    def mean(self) -> float:
        """The mean over models."""
        return math.fsum(self.of_models.values()) / len(self.of_models)


@dataclass(frozen=True)
class ModelAnalysis:
    """One fine-tuned model.

    Attributes:
        model: Its name in the recipe.
        offsets: The distribution of the deltas of all its linears.
        linears: Every linear, in natural order of tensor names.
        blocks: Every block, in order.
        divergences: Under DARE and DP; None if no prompts were given or nothing is pruned.
    """

    model: str
    offsets: Offsets
    linears: tuple[LinearAnalysis, ...]
    blocks: tuple[BlockAnalysis, ...]
    divergences: Divergences | None = None

    @property
    def numel(self) -> int:
        """The number of elements of all linears."""
        return sum(linear.numel for linear in self.linears)

    @property
    def kept(self) -> int:
        """The number of elements that the recipe keeps."""
        return sum(linear.kept for linear in self.linears)

    @property
    def density(self) -> float:
        """The share of elements that the recipe keeps."""
        return self.kept / max(1, self.numel)

    @property
    def clipped(self) -> int:
        """The number of linears that are kept whole or not at all."""
        return sum(linear.kept in (0, linear.numel) for linear in self.linears)

    @property
    def noise(self) -> float:
        """The deviation that DARE's random choice adds, relative to the base's weights."""
        return noise_of(self.offsets.relative, self.density) if self.density else math.inf


@dataclass(frozen=True)
class Overlap:
    """The overlap of the kept elements of two models; zero deltas count as not kept.

    Attributes:
        either: The share of elements that at least one model keeps.
        both: The share of elements that both models keep.
        opposite: The share of elements that both models keep with opposite signs.
    """

    either: float
    both: float
    opposite: float

    @property
    def shared(self) -> float:
        """The share that both keep, of the elements that either keeps."""
        return self.both / self.either if self.either else 0.0

    @property
    def conflict(self) -> float:
        """The share with opposite signs, of the elements that both keep."""
        return self.opposite / self.both if self.both else 0.0


@dataclass(frozen=True)
class Pair:
    """Two fine-tuned models.

    Attributes:
        models: Their names.
        overlaps: "unpruned", "90" or "80" -> the overlap of their kept elements.
    """

    models: tuple[str, str]
    overlaps: Mapping[str, Overlap]


@dataclass(frozen=True)
class Analysis:
    """The analysis of all deltas of a merge.

    Attributes:
        method: The merge method whose allocation gave the densities.
        tensors: Every tensor of the merge, in natural order of names.
        models: Every fine-tuned model.
        pairs: Every pair of fine-tuned models.
        merges: The divergences of merges, one for each combination; empty without prompts for
            every model, and of one model.
    """

    method: str
    tensors: tuple[TensorClass, ...]
    models: tuple[ModelAnalysis, ...]
    pairs: tuple[Pair, ...]
    merges: tuple[MergeDivergences, ...] = ()


def measure_structure(rows: Counts, columns: Counts) -> Structure:
    """Measure how the kept elements of a matrix are spread over its rows and columns.

    Args:
        rows: (rows,) the number of kept elements of each row.
        columns: (columns,) the number of kept elements of each column.
    """
    return Structure(
        int(rows.sum()) / max(1, len(rows) * len(columns)),
        _share_with_half(rows),
        _share_with_half(columns),
        _profile(rows / len(columns)),
        _profile(columns / len(rows)),
    )


def _share_with_half(counts: Counts) -> float:
    """Return the smallest share of the items whose counts add up to half of the total."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    held = numpy.cumsum(numpy.sort(counts)[::-1])
    return int(numpy.searchsorted(2 * held, total) + 1) / len(counts)


def _profile(shares: NDArray[numpy.float64]) -> tuple[float, ...]:
    """Return (21,) the shares at evenly spaced ranks, from the largest to the smallest."""
    ordered = numpy.sort(shares)[::-1]
    ranks = numpy.linspace(0, len(ordered) - 1, PROFILE_POINTS)
    return tuple(numpy.interp(ranks, numpy.arange(len(ordered)), ordered).tolist())


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Return model -> its short name, or its whole name if short names repeat."""
    short = {model: short_name(model) or model for model in models}
    return short if len(set(short.values())) == len(short) else {model: model for model in models}


def kinds(linears: Sequence[LinearAnalysis]) -> list[str]:
    """Return the kinds of linears, in the order of their first occurrence."""
    return list(dict.fromkeys(linear.kind for linear in linears))
