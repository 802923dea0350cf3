"""Folders that a merge would write into."""

import shutil
from pathlib import Path

import pytest
from check_command import of_recipe, said
from checkpoints import recipe, save_family


def test_output_folders(family: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(family / "base")
    for output in (family / "base", link):
        done = of_recipe(tmp_path, recipe(family), f"--output={output}")
        assert "which the merge would overwrite" in done.stdout
    older = tmp_path / "older"
    shutil.copytree(family / "law", older)
    done = of_recipe(tmp_path, recipe(family), f"--output={older}")
    assert done.exit_code == 0
    assert "it already holds 1 weight file: model.safetensors" in done.stdout


def test_layouts_of_older_merges(family: Path, tmp_path: Path) -> None:
    sharded = save_family(tmp_path / "sharded", shard="30KB")
    done = of_recipe(tmp_path, recipe(family), f"--output={sharded / 'law'}")
    (error,) = said(done, "error")
    assert "in shards, and the merge would write one file beside: remove them" in error


def test_a_disk_that_is_too_small(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    sentence = "disk: the merge needs about 0.00014 GB; 0.0 GB free: free some space, or name"
    (error,) = said(of_recipe(tmp_path, recipe(family), f"--output={tmp_path / 'new'}"), "error")
    assert sentence in error
    (warning,) = said(of_recipe(tmp_path, recipe(family)), "warning")
    assert sentence in warning
