"""What is known of the deltas of a merge: the content of `analysis.json`, and its verdicts.

Plain data, and pure functions of it. Rates are in percent; shares are from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy
from numpy.typing import NDArray

RATES = (90, 80)
"""Pruning rates at which kept sets are looked at."""

PROFILE = 21
"""Points of a profile of rows or columns."""

SLIGHT, HEAVY = 0.07, 0.13
"""Noise of DARE's rescaling, relative to the base's weights. Up to 0.07 it left SmolLM2-135M's
fine-tuned models 96 % or more of their skill, at 0.13 89 to 100 %, at 0.19 74 % or less
(examples/paper/RESULTS.md); at 0.13 it left Abel-7B 73 % (rate 90 %, paper Tables 1 and 4), under
the 90 % from which the paper calls for DPPA (4.6.1)."""

CLOSE = 1.25
"""A divergence that is at most so many times another's is no worse."""

DENSE = "unpruned"
"""The key of what holds before pruning, where others are rates."""

Counts = NDArray[numpy.int64]


@dataclass(frozen=True)
class TensorClass:
    """One tensor of the output.

    Attributes:
        name: Its name.
        shape: Its shape.
        linears: How many linears it holds; 0 if it is dense.
        dense_because: Why it is dense; None if it is not.
    """

    name: str
    shape: tuple[int, ...]
    linears: int
    dense_because: str | None


@dataclass(frozen=True)
class Offsets:
    """The deltas of all linears of a model (paper Tables 4 and 8).

    Attributes:
        minimum: Exact.
        deciles: (9,) the 10 % ... 90 % quantiles, to a relative error of 2^-8.
        maximum: Exact.
        zeros: Share of deltas that are zero.
        deviation: Root of the mean square.
        relative: The same over that of the base's weights.
        histogram: (bins,) shares, of bins of one width from -`reach` to `reach`; some lie beyond.
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
    """How what is kept of a linear is spread (paper Fig. 3).

    Attributes:
        kept: Share of its elements.
        rows_with_half: The least share of rows that hold half of what is kept; 0.5 if all hold as
            much.
        columns_with_half: Likewise.
        rows: (21,) share kept of a row, from the fullest to the emptiest, at even distances.
        columns: (21,) likewise.
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
        tensor: The tensor that holds it.
        expert: Its number there, where there are several.
        kind: Its name in a block, such as `mlp.up_proj`.
        numel: Number of elements.
        magnitude: Mean |delta|.
        significance: As the recipe measures it; None where its allocation needs none.
        kept: Number of elements that the recipe keeps.
        structure: Rate -> how what is kept is spread.
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
        """Share that the recipe keeps."""
        return self.kept / self.numel


@dataclass(frozen=True)
class BlockAnalysis:
    """One block of one model; as a linear.

    Attributes:
        stack: The stack that it is in.
        number: Its number there.
        numel: Elements of its linears.
        magnitude: Their mean |delta|.
        significance: Of all of them as one set.
        kept: Elements that the recipe keeps.
    """

    stack: str
    number: int
    numel: int
    magnitude: float
    significance: float | None
    kept: int

    @property
    def density(self) -> float:
        """Share that the recipe keeps."""
        return self.kept / self.numel


@dataclass(frozen=True)
class Divergences:
    """Mean Kullback-Leibler divergence from the fine-tuned model, in nats a token of its answers.

    Attributes:
        dare: Of the model pruned by DARE, at the recipe's density.
        dp: Pruned by DP.
        prompts: How many prompts were answered.
    """

    dare: float
    dp: float
    prompts: int


@dataclass(frozen=True)
class ModelAnalysis:
    """One fine-tuned model.

    Attributes:
        model: As the recipe names it.
        offsets: Of all its linears' deltas.
        linears: Every linear, in order.
        blocks: Every block, in order.
        divergences: Where prompts were given.
    """

    model: str
    offsets: Offsets
    linears: tuple[LinearAnalysis, ...]
    blocks: tuple[BlockAnalysis, ...]
    divergences: Divergences | None = None

    @property
    def numel(self) -> int:
        """Elements of all linears."""
        return sum(each.numel for each in self.linears)

    @property
    def kept(self) -> int:
        """Those that the recipe keeps."""
        return sum(each.kept for each in self.linears)

    @property
    def density(self) -> float:
        """Share that the recipe keeps."""
        return self.kept / max(1, self.numel)

    @property
    def clipped(self) -> int:
        """Linears that are kept whole or not at all."""
        return sum(each.kept in (0, each.numel) for each in self.linears)

    @property
    def noise(self) -> float:
        """Deviation of what DARE's random choice and rescaling add, relative to the base's weights.

        Of a delta x, DARE makes x / d with probability d, else 0: its variance is x^2 (1 - d) / d.
        """
        if self.density == 0:
            return math.inf
        return self.offsets.relative * math.sqrt((1 - self.density) / self.density)


@dataclass(frozen=True)
class Overlap:
    """The kept sets of two models.

    Attributes:
        either: Share of elements that at least one keeps, and has a delta there.
        both: Share of elements that both do.
        opposite: Share of elements that both do, with opposite signs.
    """

    either: float
    both: float
    opposite: float

    @property
    def shared(self) -> float:
        """Of what either keeps, the share that both do."""
        return self.both / self.either if self.either else 0.0

    @property
    def conflict(self) -> float:
        """Of what both keep, the share with opposite signs."""
        return self.opposite / self.both if self.both else 0.0


@dataclass(frozen=True)
class Pair:
    """Two models.

    Attributes:
        models: Their names.
        overlaps: `unpruned`, "90" and "80" -> their kept sets.
    """

    models: tuple[str, str]
    overlaps: Mapping[str, Overlap]


@dataclass(frozen=True)
class Analysis:
    """All that is known of the deltas of a merge.

    Attributes:
        method: By whose allocation the densities are.
        tensors: Every tensor of the output.
        models: Every fine-tuned model.
        pairs: Every pair of them.
    """

    method: str
    tensors: tuple[TensorClass, ...]
    models: tuple[ModelAnalysis, ...]
    pairs: tuple[Pair, ...]


def verdict(found: ModelAnalysis) -> str:
    """In plain words, whether DARE would probably do for a model or DPPA is called for (4.6.1)."""
    density = found.density
    if found.offsets.deviation == 0:
        return "There is nothing to prune: its linears are those of the base."
    if density >= 1:
        return "Nothing is pruned at density 1, by either method."
    measured = found.divergences
    if measured is not None:
        numbers = (
            f"pruned to density {density:.2g}, it diverges from itself by {measured.dare:.3g} nats "
            f"a token under DARE and by {measured.dp:.3g} under DP, on {measured.prompts} prompts"
        )
        if measured.dare <= measured.dp * CLOSE:
            return f"DARE would do: {numbers}."
        return f"DPPA is called for: {numbers}."
    numbers = (
        f"its deltas deviate by {found.offsets.relative:.2g} of the base's weights, and at density "
        f"{density:.2g} DARE's rescaling makes noise of {found.noise:.2g} of that"
    )
    if found.noise <= SLIGHT:
        return f"DARE would probably do: {numbers} (slight up to {SLIGHT})."
    if found.noise >= HEAVY:
        return f"DPPA is called for: {numbers} (heavy from {HEAVY})."
    return (
        f"It can be either: {numbers}, between {SLIGHT} and {HEAVY}; --prompts measures what each "
        f"method does to its answers."
    )


def structure(rows: Counts, columns: Counts) -> Structure:
    """How the kept elements of a matrix are spread.

    Args:
        rows: (rows,) kept elements of each row.
        columns: (columns,) of each column.
    """
    return Structure(
        int(rows.sum()) / max(1, len(rows) * len(columns)),
        _with_half(rows),
        _with_half(columns),
        _profile(rows / len(columns)),
        _profile(columns / len(rows)),
    )


def _with_half(counts: Counts) -> float:
    """The least share of items that together have half of the total."""
    total = int(counts.sum())
    if total == 0:
        return 0.0
    held = numpy.cumsum(numpy.sort(counts)[::-1])
    return int(numpy.searchsorted(2 * held, total) + 1) / len(counts)


def _profile(shares: NDArray[numpy.float64]) -> tuple[float, ...]:
    """From the largest to the smallest, at even distances."""
    ordered = numpy.sort(shares)[::-1]
    places = numpy.linspace(0, len(ordered) - 1, PROFILE)
    return tuple(numpy.interp(places, numpy.arange(len(ordered)), ordered).tolist())


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Model -> the last part of its name, where that tells it from the others."""
    last = {model: PurePath(model).name or model for model in models}
    return last if len(set(last.values())) == len(last) else {model: model for model in models}


def kinds(linears: Sequence[LinearAnalysis]) -> list[str]:
    """The kinds of linears, in the order in which they first come."""
    return list(dict.fromkeys(each.kind for each in linears))
