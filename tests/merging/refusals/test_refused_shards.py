"""Shards that are damaged or missing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import recipe, save_family, tensors_of
from commands import RunYaml
from refused_merges import Q, refused


def sharded(tmp_path: Path) -> Path:
    return save_family(tmp_path / "sharded", shard="30KB")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing"])
def test_a_damaged_shard(tmp_path: Path, run_yaml: RunYaml, damage: str) -> None:
    family = sharded(tmp_path)
    shard = sorted((family / "math").glob("model-*.safetensors"))[1]
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "garbage":
        shard.write_bytes(b"\x00" * 5000)
    else:
        shard.unlink()
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    assert str(shard) in sentence
    assert ("missing" if damage == "missing" else "truncated or damaged") in sentence


def test_a_truncated_bin_shard(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = save_family(tmp_path / "bins")
    folder = family / "math"
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    halves = list(tensors)[::2], list(tensors)[1::2]
    weight_map = {}
    for number, names in enumerate(halves, 1):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name] for name in names}, folder / shard)
        weight_map.update(dict.fromkeys(names, shard))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert run_yaml(recipe(family), output="whole").exit_code == 0
    damaged = folder / "pytorch_model-00002-of-00002.bin"
    damaged.write_bytes(damaged.read_bytes()[:-4000])
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    assert str(damaged) in sentence


@pytest.mark.parametrize("target", ["../law/model-00001-of-00009.safetensors", "/etc/passwd"])
def test_an_index_that_points_outside(tmp_path: Path, run_yaml: RunYaml, target: str) -> None:
    family = sharded(tmp_path)
    path = family / "math" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][Q] = target
    path.write_text(json.dumps(index))
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    assert f"outside the model's folder, to {target}" in sentence


def test_one_file_beside_shards(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = sharded(tmp_path)
    whole = save_family(tmp_path / "whole")
    shutil.copy(whole / "law" / "model.safetensors", family / "law")
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    assert sentence == (
        f"{family / 'law'}: it holds both model.safetensors and an index of shards: transformers "
        f"loads the single file, mergekit the shards; remove whichever is stale."
    )


def test_a_pointer_of_git_lfs(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = sharded(tmp_path)
    shard = sorted((family / "math").glob("model-*.safetensors"))[1]
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    shard.write_text(text, encoding="utf-8")
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    assert f"{shard} is a pointer of git-LFS, not the weights: git lfs pull" in sentence
