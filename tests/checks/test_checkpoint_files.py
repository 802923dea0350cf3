"""Shards, indices and LoRA adapters."""

import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from check_command import of_recipe, said
from checkpoint_edits import edit
from checkpoints import recipe, save_family


def test_shards(tmp_path: Path) -> None:
    family = save_family(tmp_path, shard="20KB")
    index = family / "math" / "model.safetensors.index.json"
    kept = index.read_text(encoding="utf-8")
    assert of_recipe(tmp_path, recipe(family)).exit_code == 0
    edit(index, lambda content: content["weight_map"].update({"model.norm.weight": "../x"}))
    assert "points outside the folder" in of_recipe(tmp_path, recipe(family)).stdout
    index.write_text(kept, encoding="utf-8")
    first = sorted((family / "math").glob("*.safetensors"))[0]
    edit(index, lambda content: content["weight_map"].update({"model.norm.weight": first.name}))
    assert "says that model.norm.weight is in" in of_recipe(tmp_path, recipe(family)).stdout
    index.write_text(kept, encoding="utf-8")
    shutil.copy(first, family / "math" / "model.safetensors")
    assert "holds both model.safetensors and an index" in of_recipe(tmp_path, recipe(family)).stdout
    (family / "math" / "model.safetensors").unlink()
    first.unlink()
    assert f"names {first.name}, which is not there" in of_recipe(tmp_path, recipe(family)).stdout


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[str, Path, Path]:
    """A model with a LoRA, the cache folder, and what mergekit calls its merge there."""
    from mergekit.common import ModelReference

    save_family(tmp_path)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    safetensors.torch.save_file({"a": torch.ones(1)}, adapter / "adapter_model.safetensors")
    cache = tmp_path / "cache"
    reference = ModelReference.parse(f"{tmp_path / 'math'}+{adapter}")
    assert reference.lora is not None
    held = cache / f"{reference.model._unique_id()}_{reference.lora._unique_id()}"
    return str(reference), cache, held


def test_lora_cache(adapted: tuple[str, Path, Path], tmp_path: Path) -> None:
    model, cache, held = adapted
    content = recipe(tmp_path)
    content["models"][0]["model"] = model

    def found() -> list[str]:
        done = of_recipe(tmp_path, content, f"--lora-cache={cache}")
        return [line for line in said(done, "error") + said(done, "warning") if model in line]

    assert found() == []
    held.mkdir(parents=True)
    assert "holds no weights, as after a killed run" in found()[0]
    shutil.copytree(tmp_path / "math", held, dirs_exist_ok=True)
    for file in held.iterdir():
        os.utime(file)
    assert found() == []
    os.utime(tmp_path / "adapter" / "adapter_model.safetensors", (2**31, 2**31))
    assert "is newer than its merge in the cache" in found()[0]
    weights = held / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in found()[0]


def test_an_adapter_that_is_not_there(family: Path, tmp_path: Path) -> None:
    content = recipe(family)
    content["models"][0]["model"] += "+./nowhere"
    assert "there is no adapter ./nowhere" in of_recipe(tmp_path, content).stdout
