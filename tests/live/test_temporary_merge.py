"""A merge into a temporary folder: what remains of one that fails, and what it says."""

import errno
from pathlib import Path

import pytest
from checkpoints import recipe, save_family
from mergekit.io.tasks import LoaderCache

from dppa_mergekit.combination.contribution import Combined
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.recipes.recipe import Recipe

WEIGHTS = {"math": {"weight": 0.4, "density": 0.3}, "law": {"weight": 0.3, "density": 0.3}}


def fill_the_disk(_: Combined) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")


def test_an_error_of_the_system_is_a_sentence_and_no_file_stays_open(tmp_path: Path) -> None:
    merged = Recipe(recipe(save_family(tmp_path), "dppa", WEIGHTS), "recipe.yml")
    with (
        pytest.raises(
            DppaError, match=r"^recipe\.yml cannot be merged \(.*No space left on device.*\)\.$"
        ),
        merge_into_folder(merged, tmp_path, fill_the_disk),
    ):
        pass
    assert not LoaderCache.loaders
    assert not list(tmp_path.glob(".dppa-*"))


def test_a_model_that_is_gone(tmp_path: Path) -> None:
    merged = Recipe(recipe(save_family(tmp_path), "linear", WEIGHTS), "recipe.yml")
    (tmp_path / "law" / "model.safetensors").unlink()
    with pytest.raises(DppaError, match=r"^recipe\.yml cannot be merged \(.*law.*\)\.$"):
        WeightedMerge.load(merged, tmp_path)
    assert not LoaderCache.loaders


def test_a_sentence_of_this_package_stays_as_it_is(tmp_path: Path) -> None:
    models = {"math": {"weight": 0.4, "density": 1.3}}
    merged = Recipe(recipe(save_family(tmp_path), "dppa", models))
    with (
        pytest.raises(DppaError, match=r"density is 1\.3; allowed is"),
        merge_into_folder(merged, tmp_path),
    ):
        pass
    assert not LoaderCache.loaders


def test_an_error_of_the_one_who_reads_the_merge_passes(tmp_path: Path) -> None:
    merged = Recipe(recipe(save_family(tmp_path), "dppa", WEIGHTS))
    with pytest.raises(ZeroDivisionError), merge_into_folder(merged, tmp_path):
        raise ZeroDivisionError
