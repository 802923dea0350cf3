"""mergekit's functions that merge tensors in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
import transformers
from checkpoints import recipe, tensors_of, unequal
from commands import Merge
from mergekit.merge_methods.api import merge_state_dicts, merge_tensors
from mergekit.merge_methods.base import PerGroupValues
from oracle_merges import METHODS, MODELS, Parameters, base_and_tuned, expected, of_family
from settings import FORMS, by_name, resolve

from dppa_mergekit import method_table


def in_memory(models: Mapping[str, Parameters]) -> dict[str, dict[str, Any]]:
    """Recipe parameters as the in-memory functions take them: name -> model -> value."""
    names = {name for values in models.values() for name in values}
    defaults = {"density": 0.2}
    return {
        name: {model: values.get(name, defaults.get(name, 1.0)) for model, values in models.items()}
        for name in names
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merge_state_dicts_equals_mergekit_yaml(
    dtype: str, method: str, family: Path, bfloat16: Path, merge: Merge
) -> None:
    folder = family if dtype == "float32" else bfloat16
    parameters = in_memory(MODELS)
    if method in ("dp", "owl"):
        parameters = {name: parameters[name] for name in ("weight", "density")}
    models = {str(folder / name): tensors_of(folder / name) for name in ("base", *MODELS)}
    by_path = {
        name: {str(folder / model): value for model, value in values.items()}
        for name, values in parameters.items()
    }
    merged = merge_state_dicts(models, method, parameters=by_path, base=str(folder / "base"))
    assert not unequal(merged, merge(recipe(folder, method, MODELS)))


@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [(torch.bfloat16, None), (torch.bfloat16, torch.float32), (None, torch.bfloat16)],
)
def test_merge_state_dicts_with_dtypes(
    dtype: torch.dtype | None, out_dtype: torch.dtype | None, family: Path
) -> None:
    models = dict(zip(("base", *MODELS), base_and_tuned(family), strict=True))
    merged = merge_state_dicts(
        models,
        "dppa",
        parameters=in_memory(MODELS),
        base="base",
        dtype=dtype,
        out_dtype=out_dtype,
    )
    # The sum is cast once, from float32 to out_dtype.
    models_as_merged = [
        {n: t.to(dtype or t.dtype).float() for n, t in tensors.items()}
        for tensors in models.values()
    ]
    wanted = expected(models_as_merged, [*MODELS.values()], out_dtype=out_dtype or dtype)
    assert not unequal(merged, wanted)


def test_merge_state_dicts_of_modules(family: Path) -> None:
    models = {
        name: transformers.LlamaForCausalLM.from_pretrained(family / name)
        for name in ("base", *MODELS)
    }
    merged = merge_state_dicts(models, "dppa", parameters=in_memory(MODELS), base="base")
    wanted = dict(of_family(family))
    wanted["lm_head.weight"] = wanted["model.embed_tokens.weight"]
    assert not unequal(merged, wanted)
    assert not any(tensor.requires_grad for tensor in merged.values())


def test_merge_state_dicts_with_a_density_for_each_tensor(family: Path) -> None:
    setting = FORMS["filters"](0.1, 0.3, 0.2)
    models = dict(zip(("base", *MODELS), base_and_tuned(family), strict=True))
    densities = PerGroupValues([resolve(setting, name) for name in models["base"]])
    merged = merge_state_dicts(
        models, "dppa", parameters={"weight": 0.5, "density": densities}, base="base"
    )
    given = [{"weight": 0.5, "density": by_name(setting)}] * 2
    assert not unequal(merged, expected(list(models.values()), given))


@pytest.mark.parametrize("method", method_table.names())
def test_a_delta_with_fewer_elements_than_the_density(
    method: str, family: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, tuned = base_and_tuned(family)[:2]
    # The fifth row of every linear, and so nearly every fifth element.
    sparse = {
        name: tuned[name].where(torch.arange(len(tensor))[:, None] % 5 == 4, tensor)
        if tensor.ndim == 2
        else tensor
        for name, tensor in base.items()
    }
    parameters = {"weight": 1.0, "density": 0.5}
    merged = merge_state_dicts(
        {"base": base, "math": sparse}, method, parameters=parameters, base="base"
    )
    name = "model.layers.1.mlp.up_proj.weight"
    is_whole = int((merged[name] != base[name]).sum()) == int((sparse[name] != base[name]).sum())
    assert is_whole == ("keeps all of them" in caplog.text)
    assert is_whole != method.startswith("dare_")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [None, "model.layers.0.mlp.up_proj.weight"])
def test_merge_tensors_keeps_the_plain_density(name: str | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn((60, 50), generator=generator).to(dtype)
    tuned = base + (0.05 * torch.randn(base.shape, generator=generator)).to(dtype)
    parameters = {"weight": 1.0, "density": 0.25, "amplify_90": 2.0, "amplify_70": 0.5}
    merged = merge_tensors([base, tuned], "dppa", parameters=parameters, base_index=0, name=name)
    delta = oracle.difference(base.float().numpy(), tuned.float().numpy())
    kept = oracle.sparsify(delta, {90: 300, 80: 600, 70: 750}, {90: 2.0, 70: 0.5})
    wanted = torch.from_numpy(base.float().numpy() + kept).to(dtype)
    assert not unequal({"merged": merged}, {"merged": wanted})


def test_merge_tensors_leaves_dense_tensors_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    base, tuned = torch.randn((2, 60, 50), generator=generator)
    name = "model.layers.0.mlp.gate.weight"
    parameters = {"weight": 0.5, "density": 0.1, "amplify_dense": 3.0}
    merged = merge_tensors([base, tuned], "dppa", parameters=parameters, base_index=0, name=name)
    assert torch.equal(merged, base + (tuned - base) * 3.0 * 0.5)
