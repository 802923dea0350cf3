"""The sentences of findings: their numbers, and the names that they suggest."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from check_command import of_recipe, said
from checkpoints import recipe, tensors_of

from dppa_mergekit.checks.mergekit_schema import METHODS
from dppa_mergekit.report.phrases import such_as


def test_one_tensor_and_several() -> None:
    def sentence(*names: str) -> str:
        return such_as(names, "tensor is missing", "tensors are missing")

    assert sentence("layers.2.q") == "1 tensor is missing: layers.2.q"
    assert sentence("layers.10.q", "layers.2.q") == "2 tensors are missing, such as layers.2.q"


@pytest.mark.parametrize("number", [1, 2])
def test_missing_tensors_are_counted(number: int, family: Path, tmp_path: Path) -> None:
    tensors = tensors_of(family / "math")
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(number)]
    for name in names:
        del tensors[name]
    safetensors.torch.save_file(tensors, family / "math" / "model.safetensors", {"format": "pt"})
    found = {
        1: f"1 tensor that mergekit reads is missing: {names[0]}.",
        2: f"2 tensors that mergekit reads are missing, such as {names[0]}.",
    }
    assert said(of_recipe(tmp_path, recipe(family)), "error") == [
        f"error: {family / 'math'}: {found[number]}"
    ]


def test_quantised_weights_are_counted(family: Path, tmp_path: Path) -> None:
    tensors = tensors_of(family / "math")
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
    for name in names:
        tensors[name] = torch.ones(80, 32, dtype=torch.int8)
    safetensors.torch.save_file(tensors, family / "math" / "model.safetensors", {"format": "pt"})
    (error,) = said(of_recipe(tmp_path, recipe(family)), "error")
    assert f"2 weights are quantised ({names[0]} is I8): " in error


def test_a_model_given_twice_in_one_spelling(family: Path, tmp_path: Path) -> None:
    content = recipe(family)
    content["models"][1]["model"] = content["models"][0]["model"]
    assert said(of_recipe(tmp_path, content), "error") == [
        f"error: {family / 'math'}: it is given twice: list it once, at the summed weight."
    ]


@pytest.mark.parametrize(
    ("parameter", "end"),
    [
        ("epsilon", "ram, ramplus_tl, della and della_linear have it."),
        ("gamma", "breadcrumbs and breadcrumbs_ties have it."),
        ("t", "nearswap and slerp have it."),
        ("select_topk", "sce has it."),
        # One of another method that is also near an own one.
        ("normalize_weights", "multislerp has it; did you mean normalize?"),
    ],
)
def test_a_parameter_of_another_method(
    parameter: str, end: str, family: Path, tmp_path: Path
) -> None:
    content = recipe(family)
    content["models"][0]["parameters"][parameter] = 0.1
    assert said(of_recipe(tmp_path, content), "error") == [
        f"error: models, {family / 'math'}: dppa has no parameter {parameter}, and mergekit "
        f"ignores it: {end}"
    ]
    # The same beside parameters.
    content = {**recipe(family), parameter: 0.1}
    assert said(of_recipe(tmp_path, content), "error") == [
        f"error: recipe: mergekit ignores {parameter!r}: {end}"
    ]


def test_a_parameter_of_no_method(family: Path, tmp_path: Path) -> None:
    content = recipe(family)
    content["models"][0]["parameters"]["zzz"] = 0.1
    (error,) = said(of_recipe(tmp_path, content), "error")
    assert error.endswith(f"ignores it: known are {', '.join(METHODS['dppa'].parameters)}.")
