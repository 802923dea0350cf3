"""Second moments estimated from a delta, against NumPy's D^T D."""

import numpy as np
import pytest
import torch

from dppa_mergekit.deltas.delta import Delta
from dppa_mergekit.deltas.linear_shape import LinearShape
from dppa_mergekit.moments import delta_moment as module
from dppa_mergekit.moments.delta_moment import RANK, delta_moment
from dppa_mergekit.moments.second_moment import SecondMoment

OUTPUTS, INPUTS = 300, 400


def draw(rank: int, noise: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A delta of leading directions that fall off, with noise over it."""
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(OUTPUTS, rank, generator=generator)
    right = torch.randn(rank, INPUTS, generator=generator)
    scale = 0.9 ** torch.arange(rank)
    return ((left * scale) @ right + noise * torch.randn(OUTPUTS, INPUTS, generator=generator)).to(
        dtype
    )


def moment_of(delta: torch.Tensor, inputs_first: bool = False) -> SecondMoment:
    stored = delta.t().contiguous() if inputs_first else delta
    return delta_moment(
        Delta(stored.view(-1)), LinearShape(*delta.shape, inputs_first=inputs_first)
    )


def dense(moment: SecondMoment) -> np.ndarray:
    vectors = moment.vectors.double().numpy()
    return (vectors * moment.values.double().numpy()) @ vectors.T + np.diag(moment.rest.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("inputs_first", [False, True])
def test_low_rank_is_found(inputs_first: bool, dtype: torch.dtype) -> None:
    delta = draw(RANK // 2, 0.0, dtype)
    values = delta.double().numpy()
    wanted = values.T @ values
    found = dense(moment_of(delta, inputs_first))
    # bfloat16 rounds the delta itself, so its rank is full; the rest is in the diagonal.
    allowed = 2e-3 if dtype == torch.bfloat16 else 1e-4
    assert np.abs(found - wanted).max() < allowed * np.abs(wanted).max()


def test_the_diagonal_is_exact_whatever_the_rank() -> None:
    delta = draw(200, 0.5)
    found = moment_of(delta)
    diagonal = found.vectors.square().mv(found.values) + found.rest
    torch.testing.assert_close(diagonal, delta.double().square().sum(0), rtol=1e-4, atol=0)
    assert len(found.values) == RANK


def test_noise_hides_little_of_the_leading_directions() -> None:
    delta = draw(200, 0.1)
    values = delta.double().numpy()
    wanted = values.T @ values
    found = dense(moment_of(delta))
    assert np.linalg.norm(wanted - found) < 0.03 * np.linalg.norm(wanted)


def test_few_inputs_are_exact() -> None:
    delta = draw(20, 0.5)[:, :50].contiguous()
    values = delta.double().numpy()
    found = dense(moment_of(delta))
    # Products are of float32, whose sums every processor rounds in its own way.
    np.testing.assert_allclose(found, values.T @ values, rtol=5e-6, atol=1e-3)


def test_a_delta_of_zero() -> None:
    found = moment_of(torch.zeros(OUTPUTS, INPUTS))
    assert dense(found).any() == False  # noqa: E712


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dppa_mergekit.deltas.delta.CHUNK", 1 << 13)
    monkeypatch.setattr(module, "GROUPS", 4)
    delta = draw(200, 0.5)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(moment_of(delta))
    for other in found[1:]:
        assert torch.equal(other.vectors, found[0].vectors)
        assert torch.equal(other.values, found[0].values)
        assert torch.equal(other.rest, found[0].rest)


@pytest.mark.parametrize("size", [1e-22, 1e20])
@pytest.mark.parametrize("inputs", [30, INPUTS])
def test_deltas_of_any_size(size: float, inputs: int) -> None:
    delta = draw(20, 0.1)[:, :inputs].contiguous() * size
    values = delta.double().numpy() / size
    wanted = values.T @ values
    found = dense(moment_of(delta)) / size**2
    assert np.linalg.norm(wanted - found) < 0.03 * np.linalg.norm(wanted)
