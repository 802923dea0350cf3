"""A combination of one's own: it needs no compiled pass, and is never replaced by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from dppa_mergekit.combination.contribution import Contribution, Place
from dppa_mergekit.combination.elementwise import Combine, ElementwiseCombination
from dppa_mergekit.combination.weighted_sum import WeightedSum
from dppa_mergekit.deltas.delta import Delta
from dppa_mergekit.deltas.kernel import library
from dppa_mergekit.sparsification.pruning import Pruned, PrunedChunks, Pruning

PLACE = Place("tensor", slice(0, 4))


@dataclass(frozen=True)
class LargestDelta(ElementwiseCombination):
    """Of every element, the largest weighted delta."""

    def divisor(self, weights: Sequence[float], dtype: torch.dtype) -> None:
        return None

    def combine(self, weights: Sequence[float], divisor: float | None) -> Combine:
        def combine(
            total: torch.Tensor, deltas: Sequence[PrunedChunks], start: int, stop: int
        ) -> None:
            total.fill_(-torch.inf)
            for delta, weight in zip(deltas, weights, strict=True):
                values = torch.zeros_like(total)
                delta.add_to(values, weight, start, stop)
                torch.maximum(total, values, out=total)

        return combine


def contributions(base: torch.Tensor, deltas: Sequence[torch.Tensor]) -> list[Contribution]:
    return [
        Contribution(Pruned(Pruning.keep_all(Delta(base + delta, base), 1.0), ()), weight)
        for delta, weight in zip(deltas, (1.0, 2.0), strict=True)
    ]


@pytest.mark.parametrize("compiled", [True, False])
def test_a_combination_without_a_compiled_pass(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(library, "load", lambda: None)
    base = torch.arange(4.0)
    given = contributions(base, [torch.tensor([1.0, -2, 3, 0]), torch.tensor([1.0, 1, -1, 0])])
    merged = torch.empty(4)
    assert not LargestDelta(lambda_=0.5).merge(PLACE, base, given, merged, torch.inf)
    assert merged.tolist() == [0 + 1.0, 1 + 1.0, 2 + 1.5, 3 + 0.0]


@pytest.mark.parametrize("compiled", [True, False])
def test_the_number_of_threads_changes_no_gradient(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(library, "load", lambda: None)
    generator = torch.Generator().manual_seed(0)
    base, *deltas, gradient = (torch.randn(150_000, generator=generator) for _ in range(4))
    given = contributions(base, deltas)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(WeightedSum().weight_gradients(given, gradient))
    assert found[0] == found[1]


def test_a_weighted_sum_of_the_same() -> None:
    base = torch.arange(4.0)
    given = contributions(base, [torch.tensor([1.0, -2, 3, 0]), torch.tensor([1.0, 1, -1, 0])])
    merged = torch.empty(4)
    assert WeightedSum().merge(PLACE, base, given, merged, 2.9)
    assert merged.tolist() == [0 + 3.0, 1 + 0.0, 2 + 1.0, 3 + 0.0]
