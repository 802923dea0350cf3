"""Folders that a merge has written."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from check_command import check, said
from checkpoints import recipe, tensors_of
from click.testing import Result

from dppa_mergekit.checks import checkpoint_files


def test_merged_folders(family: Path, tmp_path: Path, run_yaml: Callable[..., Result]) -> None:
    assert run_yaml(recipe(family)).exit_code == 0
    out = tmp_path / "out"
    done = check(out, "--verify=all")
    assert done.exit_code == 0, done.output
    assert "tensors are what its recipe gives" in done.stdout
    assert check(out, "--verify=sample").exit_code == 0
    weights = out / "model.safetensors"
    if not weights.exists():
        (weights,) = out.glob("*.safetensors")
    tensors = tensors_of(out)
    kept = weights.read_bytes()

    def save(changed: Mapping[str, torch.Tensor]) -> None:
        safetensors.torch.save_file(dict(changed), weights, {"format": "pt"})

    name = "model.layers.2.mlp.down_proj.weight"
    save({**tensors, name: tensors[name] * 1.001})
    assert check(out).exit_code == 0
    mixed = check(out, "--verify=all")
    assert f"tensors are not what its recipe gives, such as {name}" in mixed.stdout
    broken = tensors[name].clone()
    broken[3, 3] = torch.nan
    save({**tensors, name: broken})
    assert f"1 tensors hold NaN or infinity, such as {name}" in check(out).stdout
    save({key: each for key, each in tensors.items() if key != name})
    lacking = check(out, "--verify=all").stdout
    assert "1 tensors that its recipe gives are missing" in lacking
    assert f"{len(tensors) - 1} of {len(tensors)} tensors are what its recipe gives" in lacking
    weights.write_bytes(kept[: len(kept) // 2])
    assert "truncated" in check(out).stdout
    weights.write_bytes(kept)
    (out / "tokenizer.json").rename(out / "gone")
    assert "there is no tokenizer" in check(out).stdout
    (out / "gone").rename(out / "tokenizer.json")
    (out / "config.json").write_text("", encoding="utf-8")
    assert "config.json is missing, empty or no JSON" in check(out).stdout


def test_a_merge_without_base(
    family: Path,
    tmp_path: Path,
    run_yaml: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = recipe(family, "linear", {"math": {"weight": 1.0}, "law": {"weight": 1.0}})
    del content["base_model"]
    assert run_yaml(content).exit_code == 0
    asked: list[str] = []
    monkeypatch.setattr(
        checkpoint_files, "_of_hub", lambda name, model: asked.append(name) or (None, [])
    )
    done = check(tmp_path / "out")
    assert asked == []
    assert said(done, "note") == [
        f"note: {tmp_path / 'out'}: its recipe names no base model to compare it with."
    ]


def test_shards_over_an_older_merge(
    family: Path, tmp_path: Path, run_yaml: Callable[..., Result]
) -> None:
    assert run_yaml(recipe(family), "--out-shard-size", "20000").exit_code == 0
    out = tmp_path / "out"
    first = sorted(out.glob("*.safetensors"))[0]
    shutil.copy(first, out / "model-00099-of-00099.safetensors")
    done = check(out)
    assert "model-00099-of-00099.safetensors is not in the index" in done.stdout
    shutil.copy(first, out / "model.safetensors")
    assert "transformers loads the single file" in check(out).stdout
