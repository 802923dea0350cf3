"""Exact selection and amplification, against sorting in NumPy."""

import itertools
from random import Random

import numpy
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dppa_mergekit import DppaError, PartitionAmplification
from dppa_mergekit.deltas.delta import CHUNK, Delta
from dppa_mergekit.deltas.keys import Cut, HashedKeys, Keys, MagnitudeKeys
from dppa_mergekit.deltas.tie_order import murmur_finaliser
from dppa_mergekit.errors import ParameterError
from dppa_mergekit.sparsification.partitions import boundary_densities, partition_densities
from dppa_mergekit.sparsification.pruning import plan_pruning
from dppa_mergekit.sparsification.selections import LargestMagnitudes
from dppa_mergekit.sparsification.threshold_search import SMALL, Request, select

few_values = st.lists(st.sampled_from([0.0, -0.5, 0.5, 1.0, -1.0, 3e-5, -7.25]), min_size=1)
any_values = st.lists(
    st.floats(-(2.0**99), 2.0**99, allow_subnormal=False, width=32),
    min_size=1,
)
values = st.one_of(few_values, any_values)


def kept_by_sorting(delta: torch.Tensor, count: int) -> torch.Tensor:
    result = torch.zeros(delta.numel(), dtype=torch.bool)
    result[torch.from_numpy(oracle.kept_order(delta.numpy())[:count].copy())] = True
    return result


def kept(delta: torch.Tensor, counts: list[int]) -> list[torch.Tensor]:
    """The kept sets of a delta as masks; of zeros, it does not matter which are in."""
    # Only a delta that has a base is seen by the compiled passes, where there are any.
    ways = Delta(delta), Delta(delta, torch.zeros_like(delta))
    masks, compiled = (
        [chosen(MagnitudeKeys(way), cut) for cut in cuts]
        for way in ways
        for cuts in select([Request(way, MagnitudeKeys(way), counts)])
    )
    assert all(map(torch.equal, masks, compiled))
    return masks


def chosen(keys: Keys, cut: Cut) -> torch.Tensor:
    """A kept set as a mask."""
    every = keys.sample(1)
    mask = every > cut.above
    if cut.last >= 0:
        mask[cut.ties(0, every)] = True
    return mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(deadline=None)
@given(values=values, data=st.data())
def test_kept_sets_are_those_of_sorting(
    dtype: torch.dtype, values: list[float], data: st.DataObject
) -> None:
    delta = torch.tensor(values, dtype=dtype)
    counts = sorted(data.draw(st.lists(st.integers(0, len(values)), min_size=1, max_size=4)))
    masks = kept(delta, counts)
    for count, mask in zip(counts, masks, strict=True):
        assert torch.equal(mask & (delta != 0), kept_by_sorting(delta, count) & (delta != 0))
    for smaller, larger in itertools.pairwise(masks):
        assert not bool((smaller & ~larger).any())


@pytest.mark.parametrize("length", [CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 333])
def test_chunks_do_not_show(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    base = (torch.randn(length, generator=generator) * 0.02).bfloat16()
    tuned = (base.float() + torch.randn(length, generator=generator) * 3e-4).bfloat16()
    delta = tuned.float() - base.float()
    counts = [length // 10, length // 5, length // 2]
    for count, mask in zip(counts, kept(delta, counts), strict=True):
        assert int(mask.sum()) == count
        assert torch.equal(mask, kept_by_sorting(delta, count))


LONG = SMALL + 5000
STRIDE = round(LONG ** (1 / 3))
POSITION = torch.arange(LONG)


@pytest.mark.parametrize(
    "delta",
    [
        # Every element that the first sample sees is small, or large, or zero.
        torch.where(POSITION % STRIDE == 0, 1e-6, 1 + POSITION / LONG),
        torch.where(POSITION % STRIDE == 0, 1 + POSITION / LONG, 1e-6),
        torch.where(POSITION % STRIDE == 0, 0.0, 1 + POSITION / LONG),
        torch.where(POSITION % (STRIDE * 8) < STRIDE, 1e-6 * POSITION, 1 + POSITION / LONG),
        POSITION.float(),
        -POSITION.flip(0).float(),
        torch.full((LONG,), 0.25),
        torch.where(POSITION < 100, 1.0 + POSITION, 0.0),
        torch.where(POSITION < LONG // 2, 1.0, 2.0),
        torch.zeros(LONG),
    ],
)
def test_a_sample_that_misleads_changes_nothing(delta: torch.Tensor) -> None:
    counts = [0, 1, 2, 60, LONG // 10, LONG // 2, LONG // 2 + 1, LONG - 1, LONG]
    for count, mask in zip(counts, kept(delta, counts), strict=True):
        assert torch.equal(mask & (delta != 0), kept_by_sorting(delta, count) & (delta != 0))


@pytest.mark.parametrize("count", [1, 500, 2000, 12000, LONG - 1])
def test_random_keys_are_cut_as_sorting_does(count: int) -> None:
    keys = HashedKeys(LONG, torch.device("cpu"), lambda index: murmur_finaliser(index ^ 77) >> 8)
    order = numpy.lexsort((murmur_finaliser(POSITION).numpy(), -keys.sample(1).numpy()))
    ((cut,),) = select([Request(Delta(torch.ones(LONG)), keys, [count])])
    mask = chosen(keys, cut)
    assert sorted(order[:count]) == mask.nonzero().flatten().tolist()


def test_ties_favour_no_rows() -> None:
    rows, columns = 300, 1000
    (mask,) = kept(torch.full((rows * columns,), 0.25), [rows * columns // 10])
    shares = mask.view(3, -1).double().mean(dim=1)
    deviation = (0.1 * 0.9 / (rows * columns / 3)) ** 0.5
    assert (shares - 0.1).abs().max() < 4 * deviation


def test_zeros_are_not_told_apart() -> None:
    delta = torch.zeros(5000)
    delta[::50] = 1.0
    (mask,) = kept(delta, [2000])
    assert int(mask.sum()) == 100


def test_murmur_finaliser() -> None:
    indices = torch.tensor([0, 1, 2, 12345, 2**32 - 1, 2**32 + 1])
    assert murmur_finaliser(indices)[1] == 0x514E28B7
    assert murmur_finaliser(indices)[5] == 0x514E28B7
    small = oracle.hash_indices(20000).astype(numpy.int64)
    assert torch.equal(murmur_finaliser(torch.arange(20000)), torch.from_numpy(small))


def test_equal_hashed_keys_are_told_apart_too() -> None:
    keys = HashedKeys(1000, torch.device("cpu"), lambda index: index // 500)
    ((cut,),) = select([Request(Delta(torch.ones(1000)), keys, [700])])
    mask = chosen(keys, cut)
    assert int(mask.sum()) == 700
    assert bool(mask[500:].all())


@settings(deadline=None)
@given(
    values=values,
    factors=st.dictionaries(
        st.sampled_from(oracle.RATES), st.floats(0, 4, allow_subnormal=False, width=32)
    ),
    data=st.data(),
)
def test_partitions_are_those_of_sorting(
    values: list[float], factors: dict[int, float], data: st.DataObject
) -> None:
    delta = torch.tensor(values, dtype=torch.float32)
    ends = sorted(data.draw(st.lists(st.integers(0, len(values)), min_size=1, max_size=10)))
    counts = dict(zip(oracle.RATES, ends, strict=False))
    sparse = PartitionAmplification(factors).sparsify(delta, counts)
    assert torch.equal(sparse, torch.from_numpy(oracle.sparsify(delta.numpy(), counts, factors)))


@settings(deadline=None)
@given(values=values, data=st.data())
def test_factor_one_is_pruning(values: list[float], data: st.DataObject) -> None:
    delta = torch.tensor(values, dtype=torch.float32)
    count = data.draw(st.integers(0, len(values)))
    sparse = PartitionAmplification().sparsify(delta, {90: count // 2, 80: count})
    assert torch.equal(sparse, torch.where(kept_by_sorting(delta, count), delta, 0.0))


@settings(deadline=None)
@given(
    magnitudes=st.lists(st.integers(1, 10**6), min_size=1, max_size=60, unique=True),
    signs=st.randoms(use_true_random=False),
    rate=st.floats(0, 0.99),
)
def test_without_ties_the_authors_masks(magnitudes: list[int], signs: Random, rate: float) -> None:
    """Their count, restated in the oracle, given to this package's selection."""
    delta = torch.tensor([signs.choice((-1, 1)) * each * 1e-6 for each in magnitudes])
    mask = torch.from_numpy(oracle.authors_mask(delta.numpy(), rate))
    count = len(magnitudes) - int(len(magnitudes) * rate) - 1
    assert int(mask.sum()) == count
    assert torch.equal(PartitionAmplification().sparsify(delta, {90: count}) != 0, mask)


def test_any_shape_dtype_and_stride() -> None:
    delta = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    sparse = PartitionAmplification({90: 2.0}).sparsify(delta.t(), {90: 10})
    expected = oracle.sparsify(delta.t().contiguous().numpy(), {90: 10}, {90: 2.0})
    assert torch.equal(sparse, torch.from_numpy(expected))
    assert PartitionAmplification().sparsify(delta.bfloat16(), {90: 10}).dtype == torch.float32
    assert PartitionAmplification().sparsify(delta.double(), {90: 10}).dtype == torch.float64


def test_the_input_is_borrowed() -> None:
    delta = torch.randn(50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = delta.detach().clone()
    sparse = PartitionAmplification({90: 2.0}).sparsify(delta, {90: 5, 80: 20})
    assert torch.equal(delta.detach(), before)
    assert not sparse.requires_grad


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.0, {90: 0.0}),
        (0.05, {90: 0.05}),
        (0.1, {90: 0.1}),
        (0.2, {90: 0.1, 80: 0.2}),
        (0.25, {90: 0.1, 80: 0.2, 70: 0.25}),
        (1.0, {rate: (100 - rate) / 100 for rate in oracle.RATES}),
    ],
)
def test_partition_densities(density: float, expected: dict[int, float]) -> None:
    assert partition_densities(density) == expected == oracle.partition_densities(density)


def test_boundaries_are_needed_only_where_factors_change() -> None:
    assert boundary_densities(0.4, {}) == {60: 0.4}
    assert boundary_densities(0.4, {90: 2.0}) == {90: 0.1, 60: 0.4}
    assert boundary_densities(0.4, {90: 2.0, 80: 2.0, 60: 3.0}) == {80: 0.2, 70: 0.3, 60: 0.4}
    every = {90: 0.1, 80: 0.2, 70: 0.3, 60: 0.35}
    assert boundary_densities(0.35, {90: 2.0}, every_partition=True) == every


@pytest.mark.parametrize(
    "counts", [{}, {90: -1}, {90: 11}, {90: 5, 80: 4}], ids=["none", "negative", "many", "falling"]
)
def test_kept_counts_that_cannot_be(counts: dict[int, int]) -> None:
    with pytest.raises(DppaError, match="kept counts"):
        PartitionAmplification().sparsify(torch.ones(10), counts)


@pytest.mark.parametrize(
    ("factors", "words"), [({85: 1.0}, "no 85 partition"), ({90: -1.0}, "amplify_90 is -1.0")]
)
def test_factors_that_cannot_be(factors: dict[int, float], words: str) -> None:
    with pytest.raises(DppaError, match=words):
        PartitionAmplification(factors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_delta_that_is_not_finite_is_refused(value: float) -> None:
    delta = torch.tensor([1.0, 2.0, 3.0, value, 5.0, 6.0])
    with pytest.raises(ParameterError, match="NaN or infinity; allowed are finite numbers"):
        PartitionAmplification({90: 2.0}).sparsify(delta, {90: 1, 80: 2})


def test_a_selection_that_divides_cannot_order_by_magnitude() -> None:
    class Rescaled(LargestMagnitudes):
        def divisor(self, density: float) -> float:
            return density

    delta = Delta(torch.arange(10.0))
    with pytest.raises(ValueError, match="cannot order elements by magnitude"):
        plan_pruning(delta, {90: 1, 80: 2}, {}, Rescaled())
    assert plan_pruning(delta, {90: 10}, {}, Rescaled()).divisor == 1.0
