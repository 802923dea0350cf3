"""What a recipe says of its base and its weights."""

from pathlib import Path

import pytest
import yaml
from mergekit.config import evaluate_setting

from dppa_mergekit.errors import RecipeError
from dppa_mergekit.parameters import WEIGHT
from dppa_mergekit.recipes.inputs import numbers_in
from dppa_mergekit.recipes.recipe import Recipe


def of_weight(text: str) -> Recipe:
    models = [{"model": "./math", "parameters": yaml.safe_load(f"weight: {text}")}]
    return Recipe({"merge_method": "dppa", "base_model": "./base", "models": models}, "mine")


@pytest.mark.parametrize("text", ["5e-1", "0.5", "1", "-1e+0", "'2'"])
def test_weights_that_mergekit_reads_as_numbers(text: str) -> None:
    recipe = of_weight(text)
    written = recipe.parameters("./math")["weight"]
    assert recipe.weights() == {
        "./math": evaluate_setting("a.weight", written, validate=WEIGHT.check)
    }


@pytest.mark.parametrize("text", ["true", "half", "[0.1, 0.2]"])
def test_weights_that_are_no_number(text: str) -> None:
    with pytest.raises(RecipeError, match=r"mine: the weight of \./math is .*; a search starts"):
        of_weight(text).weights()


def test_numbers_of_a_setting() -> None:
    text = "[{filter: mlp, value: [1e-2, 3]}, {value: true}, {value: none}, {value: 0.5}]"
    assert numbers_in(yaml.safe_load(text)) == [0.01, 3.0, 0.5]


def test_a_recipe_without_base(tmp_path: Path) -> None:
    content = {key: of_weight("1").content[key] for key in ("merge_method", "models")}
    path = tmp_path / "no_base.yml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    for recipe in (Recipe.read(path), Recipe({**content, "base_model": None}, str(path))):
        with pytest.raises(RecipeError) as refused:
            _ = recipe.base
        assert refused.value.message == f"{path} has no base_model; allowed is a recipe with one."
