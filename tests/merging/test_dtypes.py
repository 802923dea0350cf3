"""Dtypes of checkpoints and of recipes."""

from pathlib import Path

import pytest
import torch
from checkpoints import recipe, save_family, unequal
from commands import Merge
from oracle_merges import MODELS, Tensors, converted, of_family


@pytest.mark.parametrize("method", ["dppa", "dppa_ties", "dp", "owl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dtype_of_the_checkpoints(
    dtype: torch.dtype, method: str, tmp_path: Path, merge: Merge
) -> None:
    folder = save_family(tmp_path / "family", dtype=dtype)
    wanted = of_family(folder, method=method)
    assert {tensor.dtype for tensor in wanted.values()} == {dtype}
    assert not unequal(merge(recipe(folder, method, MODELS)), wanted)


def test_float64_is_not_merged_in_float32(tmp_path: Path, merge: Merge) -> None:
    def widened(model: str, tensors: Tensors) -> Tensors:
        generator = torch.Generator().manual_seed(len(model))
        return {
            name: tensor.double() + 1e-12 * torch.rand(tensor.shape, generator=generator)
            for name, tensor in tensors.items()
        }

    save_family(tmp_path / "single")
    folder = converted(tmp_path / "single", tmp_path / "double", widened)
    wanted = of_family(folder)
    assert any(not torch.equal(t, t.float().double()) for t in wanted.values())
    assert not unequal(merge(recipe(folder, models=MODELS)), wanted)


def test_recipe_dtype_narrows_before_the_statistics(family: Path, merge: Merge) -> None:
    wanted = of_family(family, dtype=torch.bfloat16)
    late = {name: tensor.bfloat16() for name, tensor in of_family(family).items()}
    assert unequal(late, wanted)
    assert not unequal(merge(recipe(family, models=MODELS, dtype="bfloat16")), wanted)


def test_recipe_dtype_widens(bfloat16: Path, merge: Merge) -> None:
    wanted = of_family(bfloat16, dtype=torch.float32)
    assert unequal({n: t.bfloat16().float() for n, t in wanted.items()}, wanted)
    assert not unequal(merge(recipe(bfloat16, models=MODELS, dtype="float32")), wanted)


@pytest.mark.parametrize(
    ("stored", "dtypes"),
    [
        ("float32", {"out_dtype": "bfloat16"}),
        ("float32", {"out_dtype": "float16"}),
        ("bfloat16", {"out_dtype": "float32"}),
        ("bfloat16", {"dtype": "float32", "out_dtype": "bfloat16"}),
        ("float32", {"dtype": "bfloat16", "out_dtype": "float32"}),
        ("float32", {"dtype": "float64", "out_dtype": "float32"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
def test_out_dtype(
    stored: str, dtypes: dict[str, str], family: Path, bfloat16: Path, merge: Merge
) -> None:
    folder = family if stored == "float32" else bfloat16
    wanted = of_family(folder, **{key: getattr(torch, value) for key, value in dtypes.items()})
    assert not unequal(merge(recipe(folder, models=MODELS, **dtypes)), wanted)


def is_norm(name: str) -> bool:
    return "norm" in name


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32", "float16"])
@pytest.mark.parametrize("norms", [torch.float32, torch.bfloat16])
def test_dtypes_mixed_within_a_checkpoint(
    norms: torch.dtype, dtype: str | None, family: Path, tmp_path: Path, merge: Merge
) -> None:
    others = torch.bfloat16 if norms == torch.float32 else torch.float32

    def mix(_: str, tensors: Tensors) -> Tensors:
        return {n: t.to(norms if is_norm(n) else others) for n, t in tensors.items()}

    folder = converted(family, tmp_path / "mixed", mix)
    changes = {} if dtype is None else {"dtype": dtype}
    wanted = of_family(folder, **{key: getattr(torch, each) for key, each in changes.items()})
    assert not unequal(merge(recipe(folder, models=MODELS, **changes)), wanted)


@pytest.mark.parametrize("method", ["dppa", "dppa_ties"])
@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.float32, torch.float64),
        (torch.float64, torch.bfloat16),
    ],
)
def test_dtypes_of_base_and_tuned_differ(
    base: torch.dtype,
    tuned: torch.dtype,
    method: str,
    family: Path,
    tmp_path: Path,
    merge: Merge,
) -> None:
    def convert(model: str, tensors: Tensors) -> Tensors:
        return {n: t.to(base if model == "base" else tuned) for n, t in tensors.items()}

    folder = converted(family, tmp_path / "differ", convert)
    merged = merge(recipe(folder, method, MODELS))
    assert not unequal(merged, of_family(folder, method=method))
    sums = merge(recipe(folder, "task_arithmetic", MODELS), output="sums")
    assert {n: t.dtype for n, t in merged.items()} == {n: t.dtype for n, t in sums.items()}


def test_one_linear_in_another_dtype(family: Path, tmp_path: Path, merge: Merge) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def convert(model: str, tensors: Tensors) -> Tensors:
        return {**tensors, name: tensors[name].to(torch.float64 if model == "law" else None)}

    folder = converted(family, tmp_path / "one", convert)
    merged = merge(recipe(folder, models=MODELS))
    assert not unequal(merged, of_family(folder))
    assert merged[name].dtype == torch.float64
