"""The factor of a pruned delta, against traces in NumPy."""

import pytest
import torch

from dppa_mergekit.combination import output_factor
from dppa_mergekit.deltas.delta import Delta
from dppa_mergekit.deltas.linear_shape import LinearShape
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.sparsification.pruning import Pruned, plan_pruning, prune
from dppa_mergekit.sparsification.selections import LargestMagnitudes


def draw(outputs: int, inputs: int) -> tuple[Pruned, SecondMoment]:
    """A tenth of a delta, and moments whose spectrum falls as those of language models do."""
    generator = torch.Generator().manual_seed(0)
    base, delta = (torch.randn(outputs, inputs, generator=generator) for _ in range(2))
    basis, _ = torch.linalg.qr(torch.randn(inputs, 64, generator=generator))
    values = (1.0 + torch.arange(64)) ** -1.8
    stored = Delta((base + delta).view(-1), base.view(-1))
    plan = plan_pruning(stored, {90: outputs * inputs // 10}, {}, LargestMagnitudes())
    (pruned,) = prune([plan])
    return pruned, SecondMoment(basis, values, torch.full((inputs,), 1e-3))


def expect(pruned: Pruned, moment: SecondMoment, shape: LinearShape) -> float:
    """The root of tr(D G D^T) / tr(P G P^T), of the whole delta and of its largest elements."""
    delta = pruned.pruning.delta
    assert delta.base is not None
    whole = (delta.fine_tuned - delta.base).view(shape.outputs, shape.inputs).double().numpy()
    kept = whole * (abs(whole) >= sorted(abs(whole).ravel())[-pruned.pruning.counts[-1]])
    gram = (moment.vectors * moment.values @ moment.vectors.t()).double().numpy()
    gram[range(shape.inputs), range(shape.inputs)] += moment.rest.numpy()
    traces = [(delta @ gram * delta).sum() for delta in (whole, kept)]
    return float((traces[0] / traces[1]) ** 0.5)


@pytest.mark.parametrize("outputs", [3, 100, output_factor.OUTPUTS])
def test_factor_of_all_directions(outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_factor, "DIRECTIONS", 64)
    shape = LinearShape(outputs, 96)
    pruned, moment = draw(outputs, 96)
    found = output_factor.output_factor(pruned, moment, shape)
    assert found == pytest.approx(expect(pruned, moment, shape), rel=1e-5)


def test_estimate_of_large_linears_is_close() -> None:
    """Some outputs and the leading directions are enough."""
    shape = LinearShape(5 * output_factor.OUTPUTS + 3, 96)
    pruned, moment = draw(shape.outputs, shape.inputs)
    found = output_factor.output_factor(pruned, moment, shape)
    assert found == pytest.approx(expect(pruned, moment, shape), rel=0.03)


def test_outputs_are_spread_over_heads_and_places_within_them() -> None:
    """Attention heads are rows of one length, and the rows of a head are not alike."""
    for outputs in (1024, 4096, 11008, 32000):
        pieces = output_factor._spread(outputs)
        rows = [row for start, stop in pieces for row in range(start, stop)]
        assert len(set(rows)) == output_factor.OUTPUTS
        assert max(rows) < outputs
        for size in (64, 128):
            places = {row % size // 16 for row in rows}
            assert len(places) == size // 16
        quarters = [sum(row * 4 // outputs == part for row in rows) for part in range(4)]
        assert max(quarters) - min(quarters) <= 2 * output_factor.ADJACENT


def test_factor_without_outputs_is_1() -> None:
    shape = LinearShape(8, 96)
    pruned, moment = draw(8, 96)
    blind = SecondMoment(moment.vectors, 0 * moment.values, 0 * moment.rest)
    assert output_factor.output_factor(pruned, blind, shape) == 1
