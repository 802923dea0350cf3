"""Merges that `--verify` repeats, or cannot repeat."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
from check_command import check, said
from checkpoints import recipe, tensors_of
from click.testing import Result


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_inputs_that_have_changed(
    method: str, family: Path, tmp_path: Path, run_yaml: Callable[..., Result]
) -> None:
    models = {"math": {"weight": 1.0}, "law": {"weight": 1.0}}
    assert run_yaml(recipe(family, method, models, parameters={"weight": 1.0})).exit_code == 0
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = tensors_of(family / "math")
    shorter = {**tensors, name: tensors[name][:10].contiguous()}
    del tensors[name]
    for changed in (tensors, shorter):
        weights = family / "math" / "model.safetensors"
        safetensors.torch.save_file(changed, weights, {"format": "pt"})
        (error,) = said(check(tmp_path / "out", "--verify=all"), "error")
        assert error.startswith(f"error: {tmp_path / 'out'}: its recipe cannot be merged again: ")
        assert name in error


def test_random_methods_cannot_be_verified(
    family: Path, tmp_path: Path, run_yaml: Callable[..., Result]
) -> None:
    models = {"math": {"weight": 1.0, "density": 0.5}}
    assert run_yaml(recipe(family, "dare_linear", models)).exit_code == 0
    done = check(tmp_path / "out", "--verify=all")
    assert done.exit_code == 0
    assert "its weights cannot be verified" in done.stdout
