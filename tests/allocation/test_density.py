"""Density allocation: its properties on any statistics, and the authors' released rule."""

import itertools

import numpy
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dppa_mergekit import DppaError, DynamicPruning, Multiples, delta_statistics
from dppa_mergekit.allocation.density import shift_to_budget
from dppa_mergekit.allocation.statistics import LinearStatistics, ModelStatistics
from dppa_mergekit.tensor_names import Block, Linear

Deltas = dict[str, torch.Tensor]
RULES = [
    DynamicPruning(),
    DynamicPruning(significance="count"),
    DynamicPruning(max_fluctuation=0.5),
    DynamicPruning(levels=("block",), significance="count"),
    DynamicPruning(max_fluctuation=0.0),
]


@st.composite
def statistics(draw: st.DrawFn) -> ModelStatistics:
    """The statistics of a model of up to two stacks, as no real deltas may give them."""
    records = []
    for stack in range(draw(st.integers(1, 2))):
        for block in range(draw(st.integers(1, 4))):
            for name in "qkvo"[: draw(st.integers(1, 4))]:
                numel = draw(st.integers(1, 10**6))
                block_count, count = draw(st.integers(0, numel)), draw(st.integers(0, numel))
                records.append(
                    LinearStatistics(
                        Linear(f"{stack}.{block}.{name}.weight"),
                        Block(str(stack), block),
                        numel,
                        numel,
                        draw(st.floats(0, 1e3)) * numel,
                        draw(st.floats(0, 1)) * count,
                        count,
                        draw(st.floats(0, 1)) * block_count,
                        block_count,
                    )
                )
    return ModelStatistics(Multiples(), tuple(records), False)


@settings(deadline=None)
@given(
    statistics=statistics(), rule=st.sampled_from(RULES), density=st.floats(0, 1, exclude_min=True)
)
def test_the_budget_is_kept(
    statistics: ModelStatistics, rule: DynamicPruning, density: float
) -> None:
    counts = rule.allocate(statistics, density)
    numel = {each.linear: each.numel for each in statistics.linears}
    assert counts.keys() == numel.keys()
    assert all(0 <= count <= numel[linear] for linear, count in counts.items())
    wanted = density * sum(numel.values())
    assert abs(sum(counts.values()) - wanted) <= len(counts) / 2 + 1e-6 * wanted


@settings(deadline=None)
@given(
    statistics=statistics(),
    rule=st.sampled_from(RULES),
    densities=st.lists(st.floats(0, 1), min_size=2, max_size=5),
)
def test_kept_counts_nest(
    statistics: ModelStatistics, rule: DynamicPruning, densities: list[float]
) -> None:
    allocated = [rule.allocate(statistics, density) for density in sorted(densities)]
    for smaller, larger in itertools.pairwise(allocated):
        assert all(count <= larger[linear] for linear, count in smaller.items())


@settings(deadline=None)
@given(statistics=statistics(), density=st.floats(0, 1))
def test_no_fluctuation_is_magnitude_pruning(statistics: ModelStatistics, density: float) -> None:
    counts = DynamicPruning(max_fluctuation=0).allocate(statistics, density)
    assert counts == {each.linear: round(each.numel * density) for each in statistics.linears}


@given(statistics=statistics(), rule=st.sampled_from(RULES))
def test_the_ends(statistics: ModelStatistics, rule: DynamicPruning) -> None:
    whole = {each.linear: each.numel for each in statistics.linears}
    assert rule.allocate(statistics, 1) == whole
    assert rule.allocate(statistics, 0) == dict.fromkeys(whole, 0)


@settings(deadline=None)
@given(
    wanted=st.lists(st.floats(-1, 2), min_size=1, max_size=12),
    density=st.floats(0.001, 0.999),
    data=st.data(),
)
def test_the_constant_is_the_one_of_bisection(
    wanted: list[float], density: float, data: st.DataObject
) -> None:
    numel = data.draw(st.lists(st.integers(1, 10**6), min_size=len(wanted), max_size=len(wanted)))
    weights = numpy.array(numel, dtype=numpy.float64)
    kept = shift_to_budget(numpy.array(wanted), weights, density)
    if min(wanted) >= 0 and max(wanted) <= 1:
        assert kept.tolist() == wanted
        return
    constant = oracle.find_constant(wanted, numel, density)
    assert kept == pytest.approx(numpy.clip(numpy.array(wanted) + constant, 0, 1), abs=1e-9)


def random_deltas(seed: int, blocks: int = 4, hidden: int = 24) -> Deltas:
    """Deltas of a model whose linears have tails of different weight."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"attn.q": (hidden, hidden), "attn.k": (hidden // 2, hidden), "mlp.up": (60, hidden)}
    result = {}
    for block in range(blocks):
        for name, shape in shapes.items():
            noise = torch.randn(shape, generator=generator)
            power = 1 + 2 * torch.rand((), generator=generator)
            result[f"layers.{block}.{name}.weight"] = 1e-3 * noise.sign() * noise.abs() ** power
        result[f"layers.{block}.norm.weight"] = torch.randn(hidden, generator=generator)
    result["embed.weight"] = torch.randn(50, hidden, generator=generator)
    return result


def measured(deltas: Deltas, multiples: Multiples | None = None) -> ModelStatistics:
    zeros = {name: torch.zeros_like(delta) for name, delta in deltas.items()}
    return delta_statistics(zeros, deltas, multiples)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("density", [0.02, 0.1, 0.2, 0.55, 0.97])
def test_counts_are_the_oracles(seed: int, rule: DynamicPruning, density: float) -> None:
    deltas = random_deltas(seed)
    arrays = {name: delta.numpy() for name, delta in deltas.items()}
    kind = "dp" if "linear" in rule.levels else "owl"
    expected = oracle.allocate(
        oracle.measure(arrays),
        density,
        oracle.Rule(kind, rule.significance, rule.max_fluctuation),
    )
    counts = rule.allocate(measured(deltas), density)
    assert {(linear.tensor, linear.expert): count for linear, count in counts.items()} == (
        expected.counts
    )


@pytest.mark.parametrize("rule", RULES)
def test_layers_permuted_permute_the_densities(rule: DynamicPruning) -> None:
    deltas = random_deltas(0)
    order = [2, 0, 3, 1]

    def moved(name: str) -> str:
        parts = name.split(".")
        if parts[0] == "layers":
            parts[1] = str(order[int(parts[1])])
        return ".".join(parts)

    permuted = {moved(name): delta for name, delta in reversed(deltas.items())}
    before = rule.allocate(measured(deltas), 0.2)
    after = rule.allocate(measured(permuted), 0.2)
    assert {moved(linear.tensor): count for linear, count in before.items()} == {
        linear.tensor: count for linear, count in after.items()
    }


def test_the_scale_of_the_delta_does_not_matter() -> None:
    deltas = random_deltas(3)
    scaled = {name: delta * 2.0**7 for name, delta in deltas.items()}
    rule = DynamicPruning()
    assert rule.allocate(measured(deltas), 0.2) == rule.allocate(measured(scaled), 0.2)


def test_threads_do_not_show() -> None:
    # float64 deltas: sums of float32 are exact in float64, and would not show the threads.
    generator = torch.Generator().manual_seed(0)
    deltas = {
        f"layers.{i}.up.weight": torch.randn(700, 1100, generator=generator, dtype=torch.float64)
        for i in range(2)
    }
    taken = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        taken.append(measured(deltas))
    assert taken[0] == taken[1] == taken[2]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0.2, 0.3, 0.5]))
def test_the_authors_densities(seed: int, density: float) -> None:
    deltas = random_deltas(seed)
    arrays = {name: delta.numpy() for name, delta in deltas.items()}
    expected = oracle.authors_densities(arrays, density)
    rule = DynamicPruning(
        significance="count", significance_multiple=5, block_significance_multiple=3
    )
    counts = rule.allocate(measured(deltas, Multiples(5, 3)), density)
    assert {(linear.tensor, linear.expert): count for linear, count in counts.items()} == {
        key: round(arrays[key[0]].size * share) for key, share in expected.items()
    }


def test_statistics_at_other_multiples_are_refused() -> None:
    with pytest.raises(DppaError, match="statistics are at"):
        DynamicPruning(significance_multiple=4).allocate(measured(random_deltas(0)), 0.2)


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_a_density_out_of_range(density: float) -> None:
    with pytest.raises(DppaError, match="allowed is a number from 0 to 1"):
        DynamicPruning().allocate(measured(random_deltas(0)), density)
