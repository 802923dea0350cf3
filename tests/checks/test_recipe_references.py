"""Models whose paths mergekit reads as others, mappings, and paths that count from elsewhere."""

import shutil
from pathlib import Path

import pytest
from check_command import check, of_recipe, said, sound
from checkpoints import recipe, unequal, write_recipe
from click.testing import CliRunner
from commands import Merge, RunYaml

from dppa_mergekit.cli.main import main

Content = dict[str, object]


def as_mappings(content: Content) -> Content:
    for holder in (content, *content["models"]):
        key = "base_model" if holder is content else "model"
        holder[key] = {"model": {"path": holder[key]}}
    return content


@pytest.mark.parametrize("name", ["v@2", "c++ models", "a+b"])
def test_paths_that_must_be_mappings(
    name: str, family: Path, tmp_path: Path, merge: Merge, run_yaml: RunYaml
) -> None:
    wanted = merge(recipe(family), output="plain")
    odd = tmp_path / name
    shutil.copytree(family, odd, ignore=shutil.ignore_patterns("plain", "*.yml", name))
    mark = "@" if "@" in name else "+"
    errors = said(of_recipe(tmp_path, recipe(odd)), "error")
    assert len(errors) == 3
    assert all(f"mergekit takes what follows a{'n' * (mark == '@')} {mark}" in e for e in errors)
    # As mappings, they are models like others, for every command.
    content = as_mappings(recipe(odd))
    sound(of_recipe(tmp_path, content, "--sample"))
    assert not unequal(merge(content), wanted)
    sound(check(tmp_path / "out", "--verify=all"))
    path = write_recipe(tmp_path / "recipe.yml", content)
    done = CliRunner().invoke(main, ["-q", "analyze", str(path)])
    assert done.exit_code == 0, done.output
    assert str(odd / "math") in done.stdout


def test_mappings_are_compared(family: Path, tmp_path: Path) -> None:
    compared = said(of_recipe(tmp_path, as_mappings(recipe(family)), "--sample"), "note")
    assert sum("differ by" in each for each in compared) == 2
    content = as_mappings(recipe(family))
    content["models"][1]["model"] = {"model": {"path": str(family / "./gone")}}
    assert said(of_recipe(tmp_path, content), "error") == [
        f"error: {family / 'gone'}: there is no such folder."
    ]
    content["models"][1]["model"] = {"path": str(family / "law")}
    (error,) = said(of_recipe(tmp_path, content), "error")
    assert "which is no reference to a model; allowed is a path" in error


def test_a_revision_of_a_folder(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    shutil.copytree(family / "law", family / "math@1")
    content = recipe(family, models={"math@1": {"weight": 1.0}})
    (error,) = said(of_recipe(tmp_path, content), "error")
    assert f"and so reads {family / 'math'}; a folder has none" in error
    done = run_yaml(content)
    assert done.exit_code != 0
    assert "mergekit reads" in done.output
    assert not (tmp_path / "out").exists()


def test_paths_beside_the_recipe(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(family / "recipe.yml", recipe(Path()))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    errors = said(check(path), "error")
    assert len(errors) == 3
    assert all(
        error.endswith(
            "there is no such folder here, but there is one beside the recipe: mergekit counts "
            "paths from the current folder."
        )
        for error in errors
    )
    monkeypatch.chdir(family)
    sound(check(path))
