"""An independent, brute-force statement of the method, against which the package is tested.

Section numbers refer to the design page. Arrays are float32 (float64 for float64 checkpoints); the
caller widens 16-bit checkpoints. Nothing here is fast and nothing is shared with the package.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Key = tuple[str, int]  # of a linear: tensor name, expert (0 if 2-D); of a block: stack, number
Parameters = Mapping[str, Any]  # a value, or a callable: tensor name -> value (None: the default)
V = TypeVar("V")

RATES = (90, 80, 70, 60, 50, 40, 30, 20, 10, 0)
PRUNED, UNDETERMINED = -1, -2


class Rule(NamedTuple):
    """How density is allocated: "dp" (block and linear), "owl" (block, by count), "uniform"."""

    kind: str = "dp"
    significance: str = "magnitude"  # or "count"; "owl" always counts
    max_fluctuation: float = 0.08


DP, OWL, UNIFORM = Rule(), Rule("owl", "count"), Rule("uniform")


class TensorClass(NamedTuple):
    """Stack and block (None outside blocks) of a tensor, and how many linears it holds."""

    stack: str | None
    block: int | None
    linears: int  # 0: dense; 1: a 2-D linear; for a 3-D tensor: one for each expert


def classify(name: str, shape: Sequence[int], vocabulary_axis: int | None = None) -> TensorClass:
    """Class of a floating-point tensor from its name and shape (section 1, Blocks and linears).

    Norms, embeddings, tables, biases and convolutions are known by the name of the module that owns
    the tensor; routers and scalar gates by any component of the name.
    """
    parts = name.split(".")
    digits = [position for position, part in enumerate(parts) if re.fullmatch("[0-9]+", part)]
    if not digits:
        return TensorClass(None, None, 0)
    module = (parts[-2] if parts[-1] == "weight" else parts[-1]).lower()
    dense = (
        vocabulary_axis is not None
        or not {"gate", "router", "shared_expert_gate"}.isdisjoint(parts)
        or "norm" in module
        or "embed" in module
        or not {"ln", "wte", "wpe", "emb", "bias", "table"}.isdisjoint(module.split("_"))
        or re.fullmatch(r"(\w+_)?conv[0-9]*d?", module) is not None
    )
    linears = 0
    if not dense and len(shape) == 2 and parts[-1] == "weight":
        linears = 1
    elif not dense and len(shape) == 3 and "experts" in parts[:-1]:
        linears = int(shape[0])
    return TensorClass(".".join(parts[: digits[0]]), int(parts[digits[0]]), linears)


def widen(tensor: FloatArray, like: FloatArray) -> FloatArray:
    """To float64 where `like` is float64, else to float32 (section 1, Delta)."""
    return tensor.astype(np.float64) if like.dtype == np.float64 else tensor.astype(np.float32)


def difference(base: FloatArray, tuned: FloatArray) -> FloatArray:
    """The delta of one tensor (section 1, Delta)."""
    result: FloatArray = widen(tuned, base) - widen(base, base)
    return result


@dataclass(frozen=True)
class Significance:
    """Statistics of one set of deltas; `magnitude` and `count` are the two definitions."""

    elements: int
    mean: float
    magnitude: float
    count: float


def significance(delta: FloatArray, multiple: float) -> Significance:
    """All values of `delta`, of any shape, taken as one set (section 1, Significance)."""
    magnitudes = np.abs(delta.astype(np.float64)).ravel()
    n, mean = magnitudes.size, math.fsum(magnitudes) / magnitudes.size
    above = magnitudes[magnitudes > multiple * mean]
    return Significance(n, mean, math.fsum(above) / n, above.size / n)


class Statistics(NamedTuple):
    """Significance of every linear and every block of one model."""

    linears: dict[Key, Significance]
    blocks: dict[Key, Significance]
    block_of: dict[Key, Key]


def measure(
    deltas: Mapping[str, FloatArray],
    significance_multiple: float = 5.0,
    block_significance_multiple: float | None = None,
    vocabulary_tensors: Collection[str] = (),
) -> Statistics:
    """Statistics of one model from its deltas by tensor name; dense tensors are left out."""
    linears: dict[Key, Significance] = {}
    block_of: dict[Key, Key] = {}
    members: dict[Key, list[FloatArray]] = {}
    for name, delta in deltas.items():
        stack, block, count = classify(name, delta.shape, 0 if name in vocabulary_tensors else None)
        if not count or stack is None or block is None:
            continue
        for expert, part in enumerate(delta.reshape(-1, *delta.shape[-2:])):
            linears[name, expert] = significance(part, significance_multiple)
            block_of[name, expert] = (stack, block)
            members.setdefault((stack, block), []).append(part.ravel())
    multiple = block_significance_multiple
    if multiple is None:
        multiple = significance_multiple
    blocks = {key: significance(np.concatenate(of), multiple) for key, of in members.items()}
    return Statistics(linears, blocks, block_of)


def fluctuate(
    sets: Mapping[Key, Significance], wanted: str, limit: float, weigh: bool = True
) -> dict[Key, float]:
    """limit * D / max|D|, D being the distance from the weighted mean; 0 if all are equal."""
    values = {key: float(getattr(one, wanted)) for key, one in sets.items()}
    if len(set(values.values())) <= 1:
        return dict.fromkeys(sets, 0.0)
    weights = {key: one.elements if weigh else 1 for key, one in sets.items()}
    mean = math.fsum(values[key] * weights[key] for key in sets) / sum(weights.values())
    largest = max(abs(value - mean) for value in values.values())
    return {key: limit * (value - mean) / largest for key, value in values.items()}


def fluctuations(
    statistics: Statistics, rule: Rule = DP, weigh_blocks: bool = True
) -> tuple[dict[Key, float], dict[Key, float]]:
    """f_i, each stack by itself, and f_ij, over the whole model (section 1, Fluctuation)."""
    wanted = "count" if rule.kind == "owl" else rule.significance
    limit = 0.0 if rule.kind == "uniform" else rule.max_fluctuation
    of_blocks: dict[Key, float] = {}
    for stack in {stack for stack, _ in statistics.blocks}:
        sets = {key: one for key, one in statistics.blocks.items() if key[0] == stack}
        of_blocks |= fluctuate(sets, wanted, limit, weigh_blocks)
    limit = rule.max_fluctuation if rule.kind == "dp" else 0.0
    return of_blocks, fluctuate(statistics.linears, wanted, limit)


class Allocation(NamedTuple):
    """What one model keeps at one density (section 1, Kept density)."""

    block_fluctuations: dict[Key, float]
    linear_fluctuations: dict[Key, float]
    constant: float
    densities: dict[Key, float]
    counts: dict[Key, int]


def find_constant(raw: Sequence[float], elements: Sequence[int], density: float) -> float:
    """The c with sum(n clip(raw + c, 0, 1)) = density * sum(n), by bisection to the last bit."""
    if all(0.0 <= value <= 1.0 for value in raw):
        return 0.0

    def excess(c: float) -> float:
        kept = [n * min(max(r + c, 0.0), 1.0) for r, n in zip(raw, elements, strict=True)]
        return math.fsum([*kept, -density * sum(elements)])

    low, high = -max(raw), 1.0 - min(raw)  # everything clips to 0; everything clips to 1
    while low < (middle := (low + high) / 2.0) < high:
        low, high = (middle, high) if excess(middle) < 0.0 else (low, middle)
    return min((low, high), key=lambda c: abs(excess(c)))


def allocate(statistics: Statistics, density: float, rule: Rule = DP) -> Allocation:
    """Kept density and count of every linear of one model."""
    of_blocks, of_linears = fluctuations(statistics, rule)
    size = {key: one.elements for key, one in statistics.linears.items()}
    raw = {key: density + of_blocks[statistics.block_of[key]] + of_linears[key] for key in size}
    if density in (0, 1):  # a tensor is kept whole, or not at all
        constant, kept = 0.0, dict.fromkeys(size, float(density))
    else:
        constant = find_constant(list(raw.values()), list(size.values()), density)
        kept = {key: min(max(value + constant, 0.0), 1.0) for key, value in raw.items()}
    counts = {key: round(size[key] * kept[key]) for key in size}
    return Allocation(of_blocks, of_linears, constant, kept, counts)


def partition_densities(density: float) -> dict[int, float]:
    """Rate -> density kept up to and including that partition (section 1, Partitions)."""
    steps = {rate: (100 - rate) / 100 for rate in RATES}
    return {r: min(s, density) for r, s in steps.items() if r == 90 or steps[r + 10] < density}


def partition_counts(
    statistics: Statistics, density: float, rule: Rule = DP
) -> dict[Key, dict[int, int]]:
    """Of every linear: rate -> elements kept up to and including that partition (cumulative)."""
    steps = {r: allocate(statistics, d, rule) for r, d in partition_densities(density).items()}
    return {key: {r: step.counts[key] for r, step in steps.items()} for key in statistics.linears}


def hash_indices(size: int, words: Sequence[int] = (0,)) -> npt.NDArray[np.uint64]:
    """MurmurHash3's 32-bit finaliser of 0 ... size - 1, a round for each word (section 1)."""
    h = np.arange(size, dtype=np.uint64)
    for word in words:
        h = (h ^ np.uint64(word)) % np.uint64(2**32)
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
            h ^= h >> np.uint64(shift)
            h = h * np.uint64(factor) % np.uint64(2**32)
    return np.asarray(h, dtype=np.uint64)


def kept_order(delta: FloatArray) -> IntArray:
    """Flat indices of one linear (any shape), from the first kept to the last."""
    magnitudes = np.abs(delta).ravel()
    return np.lexsort((hash_indices(magnitudes.size), -magnitudes)).astype(np.int64)


def sparsify(
    delta: FloatArray, kept_counts: Mapping[int, int], factors: Mapping[int, float]
) -> FloatArray:
    """One linear, pruned and amplified, in its own dtype and shape (section 1, Partitions).

    `kept_counts` is cumulative, as `partition_counts` gives it; a missing factor is 1.
    """
    order, flat, start = kept_order(delta), delta.ravel(), 0
    result = np.zeros_like(flat)
    for rate in sorted(kept_counts, reverse=True):
        chosen = order[start : kept_counts[rate]]
        result[chosen] = flat[chosen] * flat.dtype.type(factors.get(rate, 1.0))
        start = kept_counts[rate]
    return result.reshape(delta.shape)


def value_of(parameters: Parameters, key: str, name: str, default: V) -> V:
    """Parameter `key` as the tensor `name` sees it."""
    value = parameters.get(key)
    chosen: V | None = value(name) if callable(value) else value
    return default if chosen is None else chosen


def combine(
    base: FloatArray,
    deltas: Sequence[FloatArray],
    weights: Sequence[float],
    ties: bool = False,
    normalise: bool = False,
    scale: float = 1.0,
) -> FloatArray:
    """base + combined amplified deltas: weighted sum, or mergekit's `ties` consensus by `sum`.

    All in the dtype of `base`, models in the order given (section 1, Merge).
    """
    if not deltas:
        return base
    number = base.dtype.type
    weighted = [delta * number(weight) for delta, weight in zip(deltas, weights, strict=True)]
    shares = [np.full(base.shape, number(weight)) for weight in weights]
    if ties:  # a sum of exactly 0 counts as positive; a zero delta agrees with neither sign
        positive = reduce(np.add, weighted) >= 0
        votes = [np.where(positive, term > 0, term < 0) for term in weighted]
        weighted = [np.where(vote, t, number(0)) for vote, t in zip(votes, weighted, strict=True)]
        shares = [np.where(vote, w, number(0)) for vote, w in zip(votes, shares, strict=True)]
    mixed, divisor = reduce(np.add, weighted), reduce(np.add, shares)
    if normalise:
        vanishing = divisor == 0 if ties else np.abs(divisor) < number(1e-8)
        mixed = mixed / np.where(vanishing, number(1), divisor)
    if scale != 1:
        mixed = mixed * number(scale)
    return np.asarray(base + mixed, dtype=base.dtype)


def merge(
    tensors_base: Mapping[str, FloatArray],
    tensors_per_model: Sequence[Mapping[str, FloatArray]],
    method: str,
    parameters_per_model: Sequence[Parameters],
    shared: Parameters | None = None,
    vocabulary_tensors: Collection[str] = (),
) -> dict[str, FloatArray]:
    """`dppa`, `dppa_ties`, `dp` or `owl`, before the cast to the output dtype (sections 1 and 2).

    A tensor with values of its own is allocated as though the whole model had them.
    """
    assert method in ("dppa", "dppa_ties", "dp", "owl"), method
    shared, ties = shared or {}, method == "dppa_ties"
    measured: dict[tuple[int, float, float], Statistics] = {}
    allocated: dict[tuple[int, float, float, float, Rule], dict[Key, dict[int, int]]] = {}
    merged: dict[str, FloatArray] = {}
    for name, stored in tensors_base.items():
        base = widen(stored, stored)
        linears = classify(name, base.shape, 0 if name in vocabulary_tensors else None).linears
        multiple = value_of(shared, "significance_multiple", name, 5.0)
        of_block = value_of(shared, "block_significance_multiple", name, multiple)
        rule = Rule(
            "owl" if method == "owl" else "dp",
            value_of(shared, "significance", name, "magnitude"),
            value_of(shared, "max_fluctuation", name, 0.08),
        )
        amplified: list[FloatArray] = []
        for model, own in enumerate(parameters_per_model):
            tuned, amplify = tensors_per_model[model], own if "dppa" in method else {}
            delta = difference(base, tuned[name])
            if linears == 0:
                factor = value_of(amplify, "amplify_dense", name, 1.0)
                amplified.append(delta * base.dtype.type(factor))
                continue
            key = (model, multiple, of_block)
            if key not in measured:
                deltas = {n: difference(b, tuned[n]) for n, b in tensors_base.items()}
                measured[key] = measure(deltas, multiple, of_block, vocabulary_tensors)
            density = value_of(own, "density", name, 0.2)
            case = (*key, density, rule)
            if case not in allocated:
                allocated[case] = partition_counts(measured[key], density, rule)
            counts = allocated[case]
            factors = {rate: value_of(amplify, f"amplify_{rate}", name, 1.0) for rate in RATES}
            experts = delta.reshape(linears, *delta.shape[-2:])
            kept = [sparsify(part, counts[name, e], factors) for e, part in enumerate(experts)]
            amplified.append(np.stack(kept).reshape(delta.shape))
        weights = [value_of(own, "weight", name, math.nan) for own in parameters_per_model]
        assert not any(math.isnan(weight) for weight in weights), f"{name}: weight is required"
        normalise = value_of(shared, "normalize", name, ties)
        scale = value_of(shared, "lambda", name, 1.0)
        merged[name] = combine(base, amplified, weights, ties, normalise, scale)
    return merged


def check_dare_dpa(
    base: FloatArray,
    tuned: FloatArray,
    merged: FloatArray,
    density: float,
    factors: Mapping[int, float],
    rounding: float = 2.0**-23,
) -> tuple[IntArray, dict[int, int]]:
    """Checks one linear of one model merged by `dare_dpa` at weight 1; returns labels and counts.

    An element must be base (label PRUNED) or base + delta * factor / density (label: the rate).
    Where more than one fits within rounding, as for a zero delta, it is UNDETERMINED; where none
    does, or a count (label -> elements) cannot be right, AssertionError. Factors must be distinct
    and not 0. `rounding`: relative spacing of the dtype of `base` and `merged` (bfloat16: 2**-7).
    """
    reached = partition_densities(density)
    used = [factors.get(rate, 1.0) for rate in reached]
    assert len({0.0, *used}) == 1 + len(used), "equal factors, or factor 0, cannot be told apart"
    start, end = base.astype(np.float64), merged.astype(np.float64)
    delta = difference(base, tuned).astype(np.float64)
    fits = {PRUNED: end == start}
    for rate, factor in zip(reached, used, strict=True):
        step = delta * factor / density if density > 0 else np.full(delta.shape, math.nan)
        slack = 2.0**-21 * np.abs(step) + rounding * (np.abs(start) + np.abs(step))
        fits[rate] = np.abs(end - (start + step)) <= slack
    number = np.sum(list(fits.values()), axis=0)
    assert (number > 0).all(), f"{int((number == 0).sum())} elements are in no partition"
    labels = np.select([number > 1, *fits.values()], [UNDETERMINED, *fits]).astype(np.int64)
    counts = {label: int((labels == label).sum()) for label in (*fits, UNDETERMINED)}
    ends, before = {rate: round(labels.size * d) for rate, d in reached.items()}, 0
    for label, up_to in {**ends, PRUNED: labels.size}.items():
        known, wanted = counts[label], up_to - before
        assert known <= wanted <= known + counts[UNDETERMINED], (label, wanted, counts)
        before = up_to
    return labels, counts


def authors_densities(
    deltas: Mapping[str, FloatArray], density: float, vocabulary_tensors: Collection[str] = ()
) -> dict[Key, float]:
    """Densities by the authors' code: counts, N = 3 for blocks and 5 for linears, Lambda 0.08.

    The block mean is unweighted; there is no constant and no clipping. Pruning rate: 1 - density.
    """
    statistics = measure(deltas, 5.0, 3.0, vocabulary_tensors)
    of_blocks, of_linears = fluctuations(statistics, Rule("dp", "count", 0.08), weigh_blocks=False)
    return {k: density + of_blocks[statistics.block_of[k]] + f for k, f in of_linears.items()}


def authors_mask(delta: FloatArray, pruning_rate: float) -> BoolArray:
    """What the authors' code keeps of one linear: every tie at the threshold is dropped.

    Without ties n - int(n * pruning_rate) - 1 elements are kept; pruning_rate in [0, 1).
    """
    assert 0.0 <= pruning_rate < 1.0
    magnitudes = np.abs(delta)
    threshold = np.sort(magnitudes, axis=None)[int(magnitudes.size * pruning_rate)]
    return np.asarray(magnitudes > threshold)
