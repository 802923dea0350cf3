"""The regression of deltas on their inputs, against NumPy's solution of the normal equations."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from regression_oracle import regress

from dppa_mergekit.combination import input_regression
from dppa_mergekit.combination.by_inputs import ByInputs
from dppa_mergekit.combination.contribution import Contribution, Place
from dppa_mergekit.combination.weighted_sum import WeightedSum
from dppa_mergekit.deltas.delta import Delta
from dppa_mergekit.deltas.linear_shape import LinearShape
from dppa_mergekit.errors import CheckpointError
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.sparsification.pruning import Pruned, Pruning, plan_pruning, prune
from dppa_mergekit.sparsification.selections import LargestMagnitudes

OUTPUTS, INPUTS, MODELS = 11, 7, 3
WEIGHTS = (1.0, 0.25, 2.0)


def random(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def draw_moments(rank: int, rest: float) -> list[SecondMoment]:
    """Moments of different size and subspace for every model."""
    found = []
    for seed in range(MODELS):
        basis, _ = torch.linalg.qr(random(INPUTS, rank, seed=seed))
        values = random(rank, seed=10 + seed).square() * (1 + 5 * seed)
        diagonal = random(INPUTS, seed=20 + seed).square() * rest
        found.append(SecondMoment(basis, values, diagonal))
    return found


def contribute(
    moments: Sequence[SecondMoment | None], inputs_first: bool = False
) -> tuple[torch.Tensor, list[Contribution]]:
    """A base, and a delta kept whole of every model."""
    base = random(OUTPUTS, INPUTS, seed=100)
    given = []
    for number, (moment, weight) in enumerate(zip(moments, WEIGHTS, strict=False)):
        fine_tuned = base + random(OUTPUTS, INPUTS, seed=200 + number)
        stored = [tensor.t() if inputs_first else tensor for tensor in (fine_tuned, base)]
        delta = Delta(*(tensor.contiguous().view(-1) for tensor in stored))
        pruned = Pruned(Pruning.keep_all(delta, 1.0), ())
        given.append(Contribution(pruned, weight, f"model {number}", moment))
    stored = base.t() if inputs_first else base
    return stored.contiguous().view(-1), given


def keep_a_quarter(pruned: Pruned) -> Pruned:
    """The same delta with its largest elements alone."""
    delta = pruned.pruning.delta
    return prune([plan_pruning(delta, {90: delta.numel // 4}, {}, LargestMagnitudes())])[0]


def place(inputs_first: bool = False) -> Place:
    return Place("linear", slice(0, OUTPUTS * INPUTS), LinearShape(OUTPUTS, INPUTS, inputs_first))


def merge(
    combination: ByInputs,
    moments: Sequence[SecondMoment | None],
    inputs_first: bool = False,
) -> torch.Tensor:
    """The merged linear, (outputs, inputs)."""
    base, given = contribute(moments, inputs_first)
    merged = torch.empty_like(base)
    assert not combination.merge(place(inputs_first), base, given, merged, torch.inf)
    return place(inputs_first).shape.matrix(merged)  # type: ignore[union-attr]


def solve(
    moments: Sequence[NDArray[np.float64]], shrinkage: float, ridge: float, lambda_: float
) -> NDArray[np.float64]:
    """The merged linear by the full normal equations."""
    base, given = contribute([None] * MODELS)
    deltas = []
    for contribution in given:
        delta = contribution.pruned.pruning.delta
        assert delta.base is not None
        deltas.append((delta.fine_tuned - delta.base).numpy().reshape(OUTPUTS, INPUTS))
    origin = base.numpy().reshape(OUTPUTS, INPUTS)
    return regress(origin, deltas, moments, WEIGHTS, shrinkage, ridge, lambda_)


def dense(moment: SecondMoment) -> NDArray[np.float64]:
    vectors = moment.vectors.numpy()
    found: NDArray[np.float64] = (vectors * moment.values.numpy()) @ vectors.T
    return found + np.diag(moment.rest.numpy())


@pytest.mark.parametrize(
    ("rank", "rest", "shrinkage", "ridge"),
    [
        (INPUTS, 0.0, 1.0, 0.0),  # RegMean itself
        (INPUTS, 0.0, 0.95, 0.01),
        (2, 0.5, 0.95, 0.01),  # fewer unknowns than inputs
        (2, 0.0, 0.9, 0.0),
        (2, 0.0, 1.0, 0.1),
        (1, 3.0, 0.0, 0.0),  # diagonal moments
        (4, 0.1, 0.5, 1.0),
    ],
)
@pytest.mark.parametrize("inputs_first", [False, True])
def test_equal_to_the_normal_equations(
    rank: int, rest: float, shrinkage: float, ridge: float, inputs_first: bool
) -> None:
    moments = draw_moments(rank, rest)
    merged = merge(ByInputs(shrinkage, ridge, lambda_=0.8), moments, inputs_first)
    wanted = solve([dense(moment) for moment in moments], shrinkage, ridge, 0.8)
    np.testing.assert_allclose(merged.numpy(), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", [2, INPUTS])
@pytest.mark.parametrize("inputs_first", [False, True])
def test_gradients_of_factors(rank: int, inputs_first: bool) -> None:
    """The merge is linear in them: the part of one delta is the merge in which others are zero."""
    moments = draw_moments(rank, 0.5)
    base, given = contribute(moments, inputs_first)
    gradient = random(OUTPUTS, INPUTS, seed=300)
    wanted = []
    for contribution in given:
        parts = []
        for other in given:
            delta = other.pruned.pruning.delta
            assert delta.base is not None
            own = place(inputs_first).shape.matrix(delta.fine_tuned - delta.base)  # type: ignore[union-attr]
            parts.append(own.numpy() * (other is contribution))
        grams = [dense(moment) for moment in moments]
        part = regress(np.zeros((OUTPUTS, INPUTS)), parts, grams, WEIGHTS, 0.95, 0.01, 0.8)
        wanted.append(float((gradient.numpy() * part).sum()))
    stored = (gradient.t() if inputs_first else gradient).contiguous().view(-1)
    combination = ByInputs(0.95, 0.01, lambda_=0.8)
    for order in ([0, 1, 2], [2, 0, 1]):
        found = combination.factor_gradients(
            place(inputs_first), [given[number] for number in order], stored
        )
        np.testing.assert_allclose(found, [wanted[number] for number in order], rtol=1e-10)
    whole = torch.empty_like(base)
    combination.merge(place(inputs_first), base, given, whole, torch.inf)
    assert sum(wanted) == pytest.approx(float(((whole - base) * stored).sum()))


def test_gradients_of_factors_that_do_not_count() -> None:
    """A model without weight, one that is left alone, and a dense tensor."""
    _, given = contribute(draw_moments(2, 0.5))
    gradient = random(OUTPUTS * INPUTS, seed=300)
    silent = [replace(contribution, weight=0.0) for contribution in given[1:]]
    delta = given[0].pruned.pruning.delta
    assert delta.base is not None
    alone = 0.8 * float(((delta.fine_tuned - delta.base) * gradient).sum())
    combination = ByInputs(0.95, 0.01, lambda_=0.8)
    found = combination.factor_gradients(place(), [given[0], *silent], gradient)
    assert found == [pytest.approx(alone), 0, 0]
    assert combination.factor_gradients(replace(place(), shape=None), given, gradient) == [0, 0, 0]
    assert combination.factor_gradients(place(), silent, gradient) == [0, 0]


def test_without_moments_the_deltas_stand_for_them() -> None:
    _, given = contribute([None] * MODELS)
    moments = []
    for contribution in given:
        delta = contribution.pruned.pruning.delta
        assert delta.base is not None
        own = (delta.fine_tuned - delta.base).numpy().reshape(OUTPUTS, INPUTS)
        moments.append(own.T @ own)
    for inputs_first in (False, True):
        merged = merge(ByInputs(0.95, 0.01), [None] * MODELS, inputs_first)
        wanted = solve(moments, 0.95, 0.01, 1.0)
        np.testing.assert_allclose(merged.numpy(), wanted, rtol=0, atol=1e-10)


def test_moments_of_some_models_alone_do_not_count() -> None:
    mixed = [*draw_moments(2, 0.5)[:2], None]
    merged = merge(ByInputs(0.95, 0.01), mixed)
    assert torch.equal(merged, merge(ByInputs(0.95, 0.01), [None] * MODELS))


def test_on_the_inputs_of_a_model_the_merge_acts_as_its_delta() -> None:
    """Models whose inputs are orthogonal do not disturb one another."""
    directions = torch.linalg.qr(random(INPUTS, MODELS, seed=5))[0].t()
    moments = [
        SecondMoment(direction[:, None], torch.ones(1), torch.zeros(INPUTS))
        for direction in directions
    ]
    base, given = contribute(moments)
    merged = merge(ByInputs(1.0, 1e-9), moments) - base.view(OUTPUTS, INPUTS)
    for direction, contribution in zip(directions, given, strict=True):
        delta = contribution.pruned.pruning.delta
        assert delta.base is not None
        own = (delta.fine_tuned - delta.base).view(OUTPUTS, INPUTS)
        torch.testing.assert_close(merged @ direction, own @ direction, rtol=0, atol=1e-6)


def test_one_model_alone_is_a_sum_at_weight_1() -> None:
    base, (first, *others) = contribute(draw_moments(2, 0.5))
    idle = [Contribution(other.pruned, 0.0, other.model, other.moment) for other in others]
    merged, wanted = torch.empty_like(base), torch.empty_like(base)
    ByInputs(0.95, 0.01).merge(place(), base, [first, *idle], merged, torch.inf)
    WeightedSum().merge(place(), base, [first], wanted, torch.inf)
    assert torch.equal(merged, wanted)


def test_automatic_factors_beside_a_model_without_weight_are_those_of_the_merge() -> None:
    """No token reached the linear of that model, so it has no moments; the others have theirs."""
    base, whole = contribute([*draw_moments(2, 0.5)[:2], None])
    given = [replace(one, pruned=keep_a_quarter(one.pruned)) for one in whole]
    given[2] = replace(given[2], weight=0.0)
    combination = ByInputs(0.95, 0.01, amplify=True)
    factors = combination.automatic_factors(place(), given)
    amplified = [
        replace(one, pruned=replace(one.pruned, pruning=replace(one.pruned.pruning, factors=(by,))))
        for one, by in zip(given, factors, strict=True)
    ]
    merged, wanted = torch.empty_like(base), torch.empty_like(base)
    combination.merge(place(), base, given, wanted, torch.inf)
    combination.without_automatic().merge(place(), base, amplified, merged, torch.inf)
    torch.testing.assert_close(merged, wanted, rtol=0, atol=1e-12)
    assert min(factors[:2]) > 1 == factors[2]


def test_no_model_counts_and_the_base_stays() -> None:
    base, given = contribute(draw_moments(2, 0.5))
    idle = [Contribution(other.pruned, 0.0, other.model, other.moment) for other in given]
    merged = torch.empty_like(base)
    ByInputs(0.95, 0.01).merge(place(), base, idle, merged, torch.inf)
    assert torch.equal(merged, base)


def test_dense_tensors_are_averaged() -> None:
    base, given = contribute([None] * MODELS)
    merged = torch.empty_like(base)
    dense_place = Place("norm", slice(0, len(base)))
    ByInputs(0.95, 0.01).merge(dense_place, base, given, merged, torch.inf)
    total = torch.zeros_like(base)
    for contribution in given:
        delta = contribution.pruned.pruning.delta
        assert delta.base is not None
        total += contribution.weight * (delta.fine_tuned - delta.base)
    torch.testing.assert_close(merged, base + total / sum(WEIGHTS))


def test_the_order_of_models_changes_no_bit() -> None:
    base, given = contribute(draw_moments(3, 0.5))
    found = []
    for order in (given, given[::-1], given[1:] + given[:1]):
        merged = torch.empty_like(base)
        ByInputs(0.95, 0.01).merge(place(), base, order, merged, torch.inf)
        found.append(merged)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(("rank", "rest"), [(2, 0.0), (1, 0.0)])
def test_singular_moments_end_the_merge(rank: int, rest: float) -> None:
    """Three models with two directions each span no seven inputs."""
    with pytest.raises(
        CheckpointError, match=r"Tensor linear: .* singular; allowed is a moment_ridge above 0"
    ):
        merge(ByInputs(1.0, 0.0), draw_moments(rank, rest))


def test_a_model_whose_delta_is_zero_has_no_say_without_moments() -> None:
    """Its inputs are unknown, so only the ridge pulls towards it."""
    base, given = contribute([None] * 2)
    still = Delta(base, base)
    idle = Contribution(Pruned(Pruning.keep_all(still, 1.0), ()), 1.0, "still")
    merged, wanted = torch.empty_like(base), torch.empty_like(base)
    ByInputs(0.95, 1e-6).merge(place(), base, [*given, idle], merged, torch.inf)
    ByInputs(0.95, 1e-6).merge(place(), base, given, wanted, torch.inf)
    torch.testing.assert_close(merged, wanted, rtol=0, atol=1e-3)


def test_linears_that_share_their_inputs_share_the_solution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solved = []
    solve_anew = input_regression._solve

    def count(*given: object) -> object:
        solved.append(given)
        return solve_anew(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(input_regression, "_solve", count)
    moments, others = draw_moments(2, 0.5), draw_moments(3, 0.5)
    for given in (moments, moments, others, moments):
        merge(ByInputs(0.95, 0.01), given)
    assert len(solved) == 2
    merge(ByInputs(0.9, 0.01), moments)
    assert len(solved) == 3
