"""The merge methods against the oracle, and at their edges against mergekit's own methods."""

from pathlib import Path

import numpy
import oracle
import pytest
import torch
from checkpoints import recipe, tensors_of
from commands import Merge
from mergekit.merge_methods import TensorGroup, get, merge_state_dicts, merge_tensors
from mergekit.sparsify import magnitude
from three_models import MODELS, Tensors, assert_equal


@pytest.fixture(scope="module")
def family(three_models: Path) -> Path:
    return three_models


def arrays(tensors: Tensors) -> dict[str, numpy.ndarray]:
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def expected(family: Path, method: str, shared: dict[str, object]) -> Tensors:
    base = tensors_of(family / "base")
    merged = oracle.merge(
        arrays(base),
        [arrays(tensors_of(family / name)) for name in MODELS],
        method,
        list(MODELS.values()),
        shared,
    )
    return {name: torch.from_numpy(merged[name]).to(base[name].dtype) for name in base}


SHARED: list[dict[str, object]] = [
    {},
    {"lambda": 0.8, "normalize": True},
    {"normalize": False, "max_fluctuation": 0.3},
    {"significance": "count", "significance_multiple": 3.5},
    {"significance_multiple": 4.0, "block_significance_multiple": 2.0, "max_fluctuation": 0.02},
]


@pytest.mark.parametrize("shared", SHARED, ids=str)
@pytest.mark.parametrize("method", ["dppa", "dppa_ties", "dp", "owl"])
def test_every_tensor_is_the_oracles(
    family: Path, merge: Merge, method: str, shared: dict[str, object]
) -> None:
    if method == "owl":
        shared = {key: value for key, value in shared.items() if key != "significance"}
    merged = merge(recipe(family, method, MODELS, parameters=shared))
    assert_equal(merged, expected(family, method, shared))


def test_dare_dpa_against_the_oracle(family: Path, merge: Merge) -> None:
    """One model at weight 1: every element is in one partition, and the counts are exact."""
    factors = {90: 0.9, 80: 0.6, 70: 0.3}
    own = {"weight": 1.0, "density": 0.25, **{f"amplify_{r}": f for r, f in factors.items()}}
    merged = merge(recipe(family, "dare_dpa", {"math": own}))
    base, tuned = tensors_of(family / "base"), tensors_of(family / "math")
    rounding = 2.0**-23 if base["model.norm.weight"].dtype == torch.float32 else 2.0**-7
    for name, tensor in base.items():
        start, end, result = (each.float().numpy() for each in (tensor, tuned[name], merged[name]))
        if oracle.classify(name, tensor.shape).linears:
            labels, _ = oracle.check_dare_dpa(start, end, result, 0.25, factors, rounding)
            assert set(numpy.unique(labels)) >= {oracle.PRUNED, 90, 80, 70}
        else:
            whole = torch.from_numpy(start + (end - start)).to(tensor.dtype)
            assert torch.equal(merged[name], whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("dppa", "task_arithmetic"),
        ("dp", "task_arithmetic"),
        ("owl", "task_arithmetic"),
        ("dare_dpa", "task_arithmetic"),
        ("dppa_ties", "ties"),
    ],
)
def test_at_density_one_it_is_mergekits_own_method(
    ours: str, theirs: str, normalize: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(5)
    names = [f"layers.{i}.{kind}.weight" for i in range(3) for kind in ("q", "norm")]
    models = [
        {name: torch.randn(70, 90, generator=generator, dtype=dtype) for name in names}
        for _ in range(4)
    ]
    parameters = {"weight": [0.31, 0.52, -0.2], "density": 1.0, "lambda": 0.9}
    merged = [
        merge_state_dicts(models, method, base=0, parameters={**parameters, "normalize": normalize})
        for method in (ours, theirs)
    ]
    assert_equal(*merged)


def test_without_fluctuation_it_is_mergekits_magnitude_pruning() -> None:
    generator = torch.Generator().manual_seed(6)
    base, tuned = (torch.randn(40, 50, generator=generator) for _ in range(2))
    name = "layers.0.up.weight"
    merged = merge_state_dicts(
        [{name: base, "x": base}, {name: tuned, "x": tuned}],
        "dp",
        base=0,
        parameters={"weight": 1.0, "density": 0.2, "max_fluctuation": 0.0},
    )
    assert torch.equal(merged[name], base + magnitude(tuned - base, 0.2))
    assert torch.equal(merged["x"], base + (tuned - base))


@pytest.mark.parametrize("method", ["dppa", "dppa_ties", "dp", "owl", "dare_dpa"])
def test_state_dicts_merge_as_checkpoints_do(family: Path, merge: Merge, method: str) -> None:
    merged = merge(recipe(family, method, MODELS))
    names = {str(family / name): tensors_of(family / name) for name in ("base", *MODELS)}
    keys = {key for parameters in MODELS.values() for key in parameters}
    if method in ("dp", "owl"):
        keys = {"weight", "density"}
    parameters = {
        key: {
            str(family / name): own.get(key, 0.2 if key == "density" else 1.0)
            for name, own in MODELS.items()
        }
        for key in keys
    }
    in_memory = merge_state_dicts(names, method, base=str(family / "base"), parameters=parameters)
    assert_equal(merged, in_memory)


@pytest.mark.parametrize("name", [None, "layers.0.up.weight", "whatever"])
@pytest.mark.parametrize("method", ["dppa", "dppa_ties", "dp", "owl", "dare_dpa"])
def test_one_tensor_gets_its_plain_density(method: str, name: str | None) -> None:
    generator = torch.Generator().manual_seed(7)
    base, tuned = (torch.randn(40, 50, generator=generator) for _ in range(2))
    merged = merge_tensors(
        [base, tuned],
        method,
        base_index=0,
        name=name,
        parameters={"weight": 1.0, "density": 0.15},
    )
    assert int((merged != base).sum()) == 300


def test_a_named_norm_by_itself_is_dense() -> None:
    base, tuned = torch.zeros(4, 5), torch.ones(4, 5)
    merged = merge_tensors(
        [base, tuned], "dppa", base_index=0, name="layers.0.q_norm.weight", parameters={"weight": 1}
    )
    assert torch.equal(merged, tuned)


def test_inputs_with_strides_or_gradients() -> None:
    generator = torch.Generator().manual_seed(8)
    base, tuned = (torch.randn(30, 20, generator=generator, requires_grad=True) for _ in range(2))
    parameters = {"weight": 1.0, "density": 0.3}
    plain = merge_tensors([base, tuned], "dppa", base_index=0, parameters=parameters)
    turned = merge_tensors(
        [base.t().contiguous().t(), tuned.t().contiguous().t()],
        "dppa",
        base_index=0,
        parameters=parameters,
    )
    assert torch.equal(plain, turned)
    assert not plain.requires_grad


@pytest.mark.parametrize("density", [0.0, 1e-40, 1e-5])
@pytest.mark.parametrize("method", ["dppa", "dppa_ties", "dp", "owl", "dare_dpa"])
def test_a_density_that_keeps_nothing(method: str, density: float) -> None:
    base, tuned = torch.full((4, 5), 0.5), torch.full((4, 5), 1e6)
    merged = merge_tensors(
        [base, tuned], method, base_index=0, parameters={"weight": 1.0, "density": density}
    )
    assert torch.equal(merged, base)


def test_one_group_by_itself() -> None:
    base, tuned = torch.zeros(20, 30), torch.randn(20, 30, generator=torch.Generator())
    group = TensorGroup.from_tensors([base, tuned], base_index=0)
    method = get("dppa")
    merged = method.merge_group(group, weight={1: 1.0}, density={1: 0.1})
    assert int((merged != 0).sum()) == 60


def test_truncated_vocabularies(family: Path, merge: Merge) -> None:
    plain = merge(recipe(family, "dppa", MODELS))
    option = "--unsafe-truncate-embeddings"
    assert_equal(merge(recipe(family, "dppa", MODELS), option, output="truncated"), plain)
