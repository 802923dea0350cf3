"""Folders that a merge has written."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from check_command import check, said
from checkpoint_edits import edit
from checkpoints import VOCABULARY, recipe, tensors_of
from click.testing import Result
from commands import Merge

from dppa_mergekit.checks import checkpoint_files


def test_embeddings_of_too_few_rows(family: Path, tmp_path: Path, merge: Merge) -> None:
    merge(recipe(family))
    edit(tmp_path / "out" / "config.json", lambda held: held.update(vocab_size=200))
    errors = said(check(tmp_path / "out"), "error")
    assert f"model.embed_tokens.weight has {VOCABULARY} rows, and config.json has" in errors[0]


def test_merged_folders(family: Path, tmp_path: Path, run_yaml: Callable[..., Result]) -> None:
    assert run_yaml(recipe(family)).exit_code == 0
    out = tmp_path / "out"
    done = check(out, "--verify=all")
    assert done.exit_code == 0, done.output
    assert "its recipe gives the same bytes for" in done.stdout
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
    assert check(out, "--quick").exit_code == 0
    mixed = check(out, "--verify=all")
    assert (
        f"its recipe gives other bytes for 1 of {len(tensors)} tensors, such as {name}"
        in mixed.stdout
    )
    broken = tensors[name].clone()
    broken[3, 3] = torch.nan
    save({**tensors, name: broken})
    assert f"1 tensor holds NaN or infinity: {name}" in check(out).stdout
    save({key: each for key, each in tensors.items() if key != name})
    lacking = check(out, "--verify=all").stdout
    assert "1 tensor that its recipe gives is missing" in lacking
    assert f"gives the same bytes for {len(tensors) - 1} of {len(tensors)} tensors" in lacking
    weights.write_bytes(kept[: len(kept) // 2])
    assert "truncated" in check(out).stdout
    weights.write_bytes(kept)
    (out / "tokenizer.json").rename(out / "gone")
    assert "there is no tokenizer" in check(out).stdout
    (out / "gone").rename(out / "tokenizer.json")
    (out / "config.json").write_text("", encoding="utf-8")
    assert "config.json is missing, empty or not JSON" in check(out).stdout


def test_parameters_that_the_merge_ignored(
    family: Path, tmp_path: Path, run_yaml: Callable[..., Result]
) -> None:
    models = {"math": {"weight": 0.6, "density": 0.2, "amplfy_90": 2.0}}
    assert run_yaml(recipe(family, models=models)).exit_code == 0
    done = check(tmp_path / "out")
    assert done.exit_code == 0
    (found,) = said(done, "warning")
    assert (
        "its recipe: dppa has no parameter amplfy_90, and mergekit ignores it: did you mean"
        in found
    )


def test_a_recipe_of_no_method(
    family: Path, tmp_path: Path, run_yaml: Callable[..., Result]
) -> None:
    assert run_yaml(recipe(family)).exit_code == 0
    path = tmp_path / "out" / "mergekit_config.yml"
    path.write_text(path.read_text().replace("merge_method: dppa", "merge_method: [dppa]"))
    done = check(tmp_path / "out", "--quick")
    assert "Traceback" not in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


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
        checkpoint_files,
        "_inspect_repository",
        lambda name, model: asked.append(name) or (None, []),
    )
    done = check(tmp_path / "out")
    assert asked == []
    note = f"note: {tmp_path / 'out'}: its recipe names no base model to compare it with."
    assert note in said(done, "note")


def test_shards_over_an_older_merge(
    family: Path, tmp_path: Path, run_yaml: Callable[..., Result]
) -> None:
    assert run_yaml(recipe(family), "--out-shard-size", "20000").exit_code == 0
    out = tmp_path / "out"
    first = sorted(out.glob("*.safetensors"))[0]
    for name in ("model-00099-of-00099.safetensors", "model-4.safetensors", ".tmpAb3"):
        shutil.copy(first, out / name)
    (warning,) = said(check(out), "warning")
    assert "3 weight files are not of this merge, such as .tmpAb3: left over from" in warning
    shutil.copy(first, out / "model.safetensors")
    assert "transformers loads the single file" in check(out).stdout


def test_a_mixture_of_two_merges(
    family: Path, tmp_path: Path, run_yaml: Callable[..., Result], merge: Merge
) -> None:
    merge(recipe(family, "task_arithmetic", {"law": {"weight": 1.0}}), "--out-shard-size", "20000")
    (tmp_path / "out").rename(tmp_path / "older")
    merge(recipe(family, "dppa"), "--out-shard-size", "20000")
    out = tmp_path / "out"
    done = check(out)
    number = len(list(out.glob("*.safetensors")))
    assert f"gives the same bytes for {number} of {len(tensors_of(out))} tensors, one of each" in (
        done.stdout
    )
    # A kill in the loop that gives shards their names leaves some of an older merge.
    for path in sorted((tmp_path / "older").glob("*.safetensors"))[2:]:
        shutil.copy(path, out / path.name)
    (error,) = said(check(out), "error")
    assert "its recipe gives other bytes for" in error
    assert check(out, "--quick").exit_code == 0
    # Nothing is computed where the models are gone, or where something else is wrong.
    shutil.rmtree(family / "math")
    done = check(out)
    assert done.exit_code == 0, done.stdout
    assert "bytes" not in done.stdout
