"""Sharded and pickled checkpoints give the same merge as plain ones."""

import hashlib
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import recipe, save_family, unequal
from commands import Merge, RunYaml
from oracle_merges import MODELS, of_family, pickled


def digests(folder: Path) -> dict[str, str]:
    """Of all files below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_sharded_checkpoints(family: Path, tmp_path: Path, merge: Merge) -> None:
    sharded = save_family(tmp_path / "sharded", shard="30KB")
    for name in ("base", *MODELS):
        assert (sharded / name / "model.safetensors.index.json").exists()
        assert len(list((sharded / name).glob("*.safetensors"))) > 3
    assert not unequal(merge(recipe(sharded, models=MODELS)), of_family(family))


def test_models_sharded_differently(family: Path, tmp_path: Path, merge: Merge) -> None:
    save_family(tmp_path / "small", shard="20KB")
    mixed = recipe(tmp_path / "small", models=MODELS)
    mixed["base_model"] = str(family / "base")
    assert not unequal(merge(mixed), of_family(family))


LAZY = pytest.param(
    ("--lazy-unpickle",),
    marks=pytest.mark.skipif(sys.version_info >= (3, 13), reason="mergekit 0.1.5 cannot"),
    id="lazy",
)


@pytest.mark.parametrize("options", [pytest.param((), id="eager"), LAZY])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pickled_checkpoints(
    dtype: str,
    shards: int,
    options: tuple[str, ...],
    family: Path,
    bfloat16: Path,
    tmp_path: Path,
    merge: Merge,
) -> None:
    source = family if dtype == "float32" else bfloat16
    folder = pickled(source, tmp_path / "pickled", shards)
    assert not unequal(merge(recipe(folder, models=MODELS), *options), of_family(source))


def test_inputs_are_left_as_they_were(family: Path, bfloat16: Path, merge: Merge) -> None:
    for folder in (family, bfloat16):
        before = digests(folder)
        merge(recipe(folder, models=MODELS, dtype="float32"), "--clone-tensors")
        assert digests(folder) == before


def test_pickled_output(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    ended = run_yaml(recipe(family, models=MODELS), "--no-safe-serialization")
    assert ended.exit_code == 0, ended.output
    merged = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    assert not unequal(merged, of_family(family))
