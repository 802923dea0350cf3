"""Checks read PyTorch's own files as they read safetensors."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from check_command import check, of_recipe, said
from checkpoints import new_model, recipe, tensors_of
from commands import RunYaml
from oracle_merges import pickled

NAME = "model.layers.2.mlp.down_proj.weight"


def change(folder: Path, alter: Callable[[torch.Tensor], torch.Tensor], is_old: bool) -> None:
    """Alter a tensor of a pickled model, and save it as PyTorch does, or did before 1.6."""
    for path in folder.glob("*.bin"):
        tensors = torch.load(path, weights_only=True)
        if NAME in tensors:
            tensors[NAME] = alter(tensors[NAME])
            torch.save(tensors, path, _use_new_zipfile_serialization=not is_old)
            return
    raise AssertionError(f"{folder} holds no {NAME}")


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("shard", ["5B", "20000"])
def test_a_merged_folder(
    shard: str, is_old: bool, family: Path, tmp_path: Path, run_yaml: RunYaml
) -> None:
    content = recipe(family, dtype="bfloat16")
    ended = run_yaml(content, "--no-safe-serialization", "--out-shard-size", shard)
    assert ended.exit_code == 0, ended.output
    out = tmp_path / "out"
    done = check(out, "--verify=all")
    assert done.exit_code == 0, done.stdout
    count = len(tensors_of(family / "law"))
    assert f"its recipe gives the same bytes for {count} of {count} tensors." in done.stdout
    change(out, lambda tensor: tensor * 1.5, is_old)
    assert check(out, "--quick").exit_code == 0
    (error,) = said(check(out, "--verify=all"), "error")
    assert f"its recipe gives other bytes for 1 of {count} tensors, such as {NAME}" in error

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        # Not contiguous, and with a gradient.
        spoilt = tensor.t().contiguous().t()
        spoilt[-1, -1] = -torch.inf
        return torch.nn.Parameter(spoilt)

    change(out, spoil, is_old)
    (error,) = said(check(out), "error")
    assert f"1 tensor holds NaN or infinity: {NAME}." in error


def test_a_folder_without_the_tensors_of_its_recipe(
    family: Path, tmp_path: Path, run_yaml: RunYaml
) -> None:
    assert run_yaml(recipe(family), "--no-safe-serialization").exit_code == 0
    torch.save({"other.weight": torch.ones(2)}, tmp_path / "out" / "pytorch_model.bin")
    done = check(tmp_path / "out", "--verify=all")
    assert "gives the same bytes" not in done.stdout
    assert "no tensor was compared: it holds none of those that its recipe gives" in done.stdout


@pytest.mark.parametrize("is_old", [False, True])
def test_samples(is_old: bool, family: Path, tmp_path: Path) -> None:
    folder = pickled(family, tmp_path / "pickled", 1)
    done = of_recipe(tmp_path, recipe(folder), "--sample")
    assert done.exit_code == 0, done.stdout
    plain = of_recipe(tmp_path, recipe(family), "--sample")
    differences = [line.split("math: ")[-1] for line in said(plain, "note") if "differ by" in line]
    assert differences[0] in done.stdout
    other = new_model("llama", 77).state_dict()
    for path in (folder / "math").glob("*.bin"):
        tensors = {name: other[name] for name in torch.load(path, weights_only=True)}
        torch.save(tensors, path, _use_new_zipfile_serialization=not is_old)
    (error,) = said(of_recipe(tmp_path, recipe(folder), "--sample"), "error")
    assert "it is not a fine-tune of this base" in error
