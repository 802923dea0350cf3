"""Recipes of slices: layers that move, and models that are given twice."""

from pathlib import Path

import pytest
from check_command import of_recipe, said
from checkpoint_edits import edit
from checkpoints import new_model
from click.testing import Result
from sliced_recipes import sliced


def test_slices_that_move_layers(family: Path, tmp_path: Path) -> None:
    assert of_recipe(tmp_path, sliced(family, [0, 2], [2, 3])).exit_code == 0
    # A slice may have a base of its own, which needs no weight.
    based = sliced(family, [0, 2], [2, 3])
    for each in based["slices"]:
        each["base_model"] = each["sources"][1]["model"]
        del each["sources"][1]["parameters"]
    assert "there is no weight" not in of_recipe(tmp_path, based).stdout
    moved = sliced(family, [0, 1], [2, 3])
    done = of_recipe(tmp_path, moved)
    assert "error: slice 2: layer 2 would become layer 1" in done.stdout
    moved["modules"] = {"default": {"slices": moved.pop("slices")}}
    done = of_recipe(tmp_path, moved)
    assert "error: modules, default, slice 2: layer 2 would become layer 1" in done.stdout


@pytest.mark.parametrize("layers", [[0, "a"], [0, None], [0, [1]], [0], "0-3", None])
def test_ranges_that_mergekit_refuses(layers: object, family: Path, tmp_path: Path) -> None:
    done = of_recipe(tmp_path, sliced(family, [0, 2], layers))
    assert [each.split("math: ")[1] for each in said(done, "error")[1:]] == [
        f"layer_range is {layers!r}; allowed are two whole numbers, the first layer and the one "
        f"after the last."
    ]


def test_models_in_slices(family: Path, tmp_path: Path) -> None:
    content = sliced(family, [0, 2], [2, 3])
    again = {**content["slices"][0]["sources"][1], "model": f"{family}/./math"}
    content["slices"][0]["sources"].append(again)
    assert said(of_recipe(tmp_path, content), "error") == [
        f"error: {family}/./math: it is given twice, also as {family}/math: "
        "list it once, at the summed weight."
    ]
    content = sliced(family, [0, 2], [2, 3])
    for each in content["slices"]:
        each["sources"][0]["model"] = f"{family}/./base"
    assert len(said(of_recipe(tmp_path, content), "error")) == 1

    new_model("llama", 3, intermediate_size=96).save_pretrained(family / "math")
    content = sliced(family, [0, 2], [2, 3])
    done = of_recipe(tmp_path, content, "--sample")
    assert "tensors have another shape than in the base model" in done.stdout
    assert "it is not a fine-tune of this base" in done.stdout
    content["modules"] = {"default": {"slices": content.pop("slices")}}
    assert "tensors have another shape" in of_recipe(tmp_path, content).stdout
    # Other methods may take layers from anywhere.
    moving = sliced(family, [0, 2], [0, 2], method="linear")
    assert_not_compared(of_recipe(tmp_path, moving, "--sample"))
    new_model("llama", 3).save_pretrained(family / "math")
    edit(family / "math" / "config.json", lambda held: held.update(num_hidden_layers=4))
    assert_not_compared(of_recipe(tmp_path, sliced(family, [0, 2], [2, 3])))


def assert_not_compared(done: Result) -> None:
    assert done.exit_code == 0, done.stdout
    assert "slices may move its layers: it was not compared with the base" in done.stdout
