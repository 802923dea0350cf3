"""The random partitions of dare_dpa."""

import pytest
import torch
from mergekit.merge_methods import merge_state_dicts
from three_models import Tensors


def dare(seed: int, models: dict[str, torch.Tensor], name: str = "layers.0.up.weight") -> Tensors:
    """The pruned deltas of single models under dare_dpa at density 0.2, from a base of zeros."""
    zeros = {name: torch.zeros(60, 50), "x": torch.zeros(1)}
    return {
        model: merge_state_dicts(
            {"base": zeros, model: {name: delta, "x": torch.ones(1)}},
            "dare_dpa",
            base="base",
            parameters={"weight": 1.0, "density": 0.2, "seed": seed},
        )[name]
        for model, delta in models.items()
    }


def test_dare_preserves_the_mean() -> None:
    delta = torch.randn(60, 50, generator=torch.Generator().manual_seed(9))
    seeds = 300
    total = sum(dare(seed, {"math": delta})["math"] / delta for seed in range(seeds))
    mean = total / seeds  # type: ignore[operator]
    deviation = (0.8 / 0.2 / seeds) ** 0.5
    assert (mean - 1).abs().max() < 5 * deviation
    assert abs(float(mean.mean()) - 1) < 1e-3
    assert float(mean.std()) == pytest.approx(deviation, rel=0.1)


def test_dare_draws_anew_for_seed_model_and_tensor() -> None:
    delta = torch.ones(60, 50)
    first = dare(0, {"math": delta, "law": delta})
    masks = [
        first["math"],
        first["law"],
        dare(1, {"math": delta})["math"],
        dare(0, {"math": delta}, "layers.0.down.weight")["math"],
    ]
    for position, one in enumerate(masks):
        for other in masks[position + 1 :]:
            both = int(((one != 0) & (other != 0)).sum())
            assert both == pytest.approx(0.04 * 3000, abs=5 * (0.04 * 0.96 * 3000) ** 0.5)


def test_dare_depends_on_no_order() -> None:
    delta = torch.randn(60, 50, generator=torch.Generator().manual_seed(10))
    name = "layers.0.up.weight"
    base, tuned, other = ({name: each, "x": delta} for each in (delta * 0, delta, delta * 2))
    parameters = {"weight": {"a": 1.0, "b": 0.5}, "density": 0.2}
    one = merge_state_dicts(
        {"base": base, "a": tuned, "b": other}, "dare_dpa", base="base", parameters=parameters
    )
    two = merge_state_dicts(
        {"b": {"x": delta, name: delta * 2}, "a": tuned, "base": base},
        "dare_dpa",
        base="base",
        parameters=parameters,
    )
    assert torch.allclose(one[name], two[name], atol=1e-6)
    assert torch.equal(one[name] != 0, two[name] != 0)
