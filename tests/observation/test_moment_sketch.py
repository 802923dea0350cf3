"""Streamed second moments, against NumPy's."""

import numpy as np
import pytest
import torch

from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.observation.moment_sketch import MomentSketch

INPUTS = 200


def draw(number: int, seed: int = 0) -> torch.Tensor:
    """Vectors whose directions fall off, as activations' do."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(INPUTS, INPUTS, generator=generator))
    return (torch.randn(number, INPUTS, generator=generator) * 0.93 ** torch.arange(INPUTS)) @ basis


def observe(vectors: torch.Tensor, rank: int, batch: int) -> SecondMoment:
    sketch = MomentSketch(vectors.shape[1], rank, vectors.device)
    for part in vectors.split(batch):
        sketch.add(part)
    assert sketch.vectors == len(vectors)
    return sketch.moment()


def dense(moment: SecondMoment) -> np.ndarray:
    vectors = moment.vectors.double().numpy()
    return (vectors * moment.values.double().numpy()) @ vectors.T + np.diag(moment.rest.numpy())


@pytest.mark.parametrize(("rank", "number"), [(40, 40), (INPUTS, 1000), (100, 1000)])
def test_exact_where_the_rank_suffices(rank: int, number: int) -> None:
    vectors = draw(number) if rank != 100 else draw(number)[:, :100].contiguous()
    wanted = vectors.double().numpy().T @ vectors.double().numpy() / number
    found = dense(observe(vectors, rank, 7))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_long_stream_is_near_the_best_of_its_rank() -> None:
    vectors, rank = draw(3000), 32
    values = vectors.double().numpy()
    wanted = values.T @ values / len(values)
    found = observe(vectors, rank, 50)
    low_rank = (found.vectors.double() * found.values) @ found.vectors.double().t()
    best = np.sqrt((np.linalg.eigvalsh(wanted)[:-rank] ** 2).sum())
    assert np.linalg.norm(wanted - low_rank.numpy()) < 1.5 * best
    np.testing.assert_allclose(np.diag(dense(found)), np.diag(wanted), rtol=1e-4)


def test_the_batches_do_not_matter() -> None:
    vectors = draw(500)
    one, other = (dense(observe(vectors, 64, batch)) for batch in (500, 13))
    np.testing.assert_allclose(one, other, rtol=0, atol=0.02 * np.abs(one).max())


def test_vectors_of_zero_do_not_count() -> None:
    vectors = draw(10)
    sketch = MomentSketch(INPUTS, 16, vectors.device)
    sketch.add(torch.cat([vectors, torch.zeros(5, INPUTS)]))
    assert sketch.vectors == 10


def test_half_precision_is_summed_in_float32() -> None:
    vectors = draw(200).bfloat16()
    wanted = vectors.double().numpy().T @ vectors.double().numpy() / 200
    found = dense(observe(vectors, INPUTS, 50))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
