"""The weights with which a recipe begins, and those that are written into it."""

import math
from pathlib import Path

import pytest
from checkpoints import recipe, save_family, tensors_of

from dppa_mergekit.adamerging.learnable import coefficients_of
from dppa_mergekit.adamerging.objectives import load_merge
from dppa_mergekit.errors import RecipeError
from dppa_mergekit.live.placement import AS_STORED
from dppa_mergekit.recipes.by_scope import Scope, shield, value_at
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.tensor_names import Block, block_of


def test_weights_wherever_a_recipe_has_them(tmp_path: Path) -> None:
    def sliced(**parameters: object) -> Recipe:
        sources = [{"model": name, "layer_range": [0, 3]} for name in ("base", "math")]
        return Recipe(
            {
                "merge_method": "dp",
                "base_model": "base",
                "slices": [{"sources": sources, "parameters": parameters}],
                "parameters": {"weight": 0.9},
            }
        )

    assert sliced(weight=0.8).weights() == {"math": 0.8}
    assert sliced().weights() == {"math": 0.9}
    assert sliced(weight=0.8, density=0.3).parameters("math") == {"weight": 0.8, "density": 0.3}
    for given in (sliced(weight=0.8), sliced()):
        assert given.with_default("weight", 0.3).content == given.content
    bare = sliced()
    del bare.content["parameters"]
    assert bare.with_default("weight", 0.3).weights() == {"math": 0.3}
    twice = sliced(weight=0.8)
    twice.content["slices"] *= 2  # type: ignore[operator]
    assert twice.is_sliced
    assert twice.weights() == {"math": 0.8}
    other = sliced(weight=0.7).content["slices"]
    twice.content["slices"] = [*sliced(weight=0.8).content["slices"], *other]  # type: ignore[misc]
    with pytest.raises(RecipeError, match=r"math is 0\.8 in one place and 0\.7 in another"):
        twice.weights()


def test_the_start_is_the_recipes(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    models = {
        "math": {"weight": [{"filter": "mlp", "value": 0.9}, {"value": 0.5}], "density": 0.3},
        "law": {"density": 0.2},
    }
    merge = load_merge(Recipe(recipe(family, models=models)), tmp_path, AS_STORED)
    of_math, of_law = (row.start for row in coefficients_of(merge, "block").rows)
    assert set(of_law.values()) == {0.3}
    base = tensors_of(family / "base")
    first = {
        name: tensor for name, tensor in base.items() if block_of(name) == Block("model.layers", 0)
    }
    numbers = {
        name: tensor.numel() * (0.9 if "mlp" in name else 0.5) for name, tensor in first.items()
    }
    mean = math.fsum(numbers.values()) / sum(tensor.numel() for tensor in first.values())
    assert of_math[Block("model.layers", 0)] == pytest.approx(mean)
    assert of_math[None] == 0.5
    gradient = {"math": {"weight": [0.1, 0.2, 0.6]}, "law": {"weight": 0.4}}
    merge = load_merge(Recipe(recipe(family, "dp", gradient)), tmp_path, AS_STORED)
    of_math, _ = (row.start for row in coefficients_of(merge, "block").rows)
    # mergekit gives what is outside all layers the first value.
    assert list(of_math.values()) == pytest.approx([0.1, 0.2, 0.6, 0.1])


def test_a_linear_starts_at_its_own_number(tmp_path: Path) -> None:
    family = save_family(tmp_path, "mixtral")
    weight = [{"filter": "mlp", "value": 0.9}, {"filter": "norm", "value": 0.1}, {"value": 0.5}]
    factors = [{"filter": "down_proj", "value": 1.5}, {"value": 1.0}]
    models = {"math": {"weight": weight, "density": 0.2, "amplify_80": factors}}
    merge = load_merge(Recipe(recipe(family, models=models)), tmp_path, AS_STORED)
    weights, *partitions = coefficients_of(merge, "partition").rows
    linears = [name for name in weights.start if name is not None]
    assert len(linears) == 3 * (4 + 2)  # the experts of a layer are in two tensors
    for name in linears:
        assert weights.start[name] == (0.9 if "mlp" in str(name) else 0.5)
    dense = weights.start[None]
    assert 0.1 < dense < 0.9  # norms, embeddings and routers
    of_rates = {row.name: row.start for row in partitions}
    assert set(of_rates) >= {"amplify_90", "amplify_80"}
    assert set(of_rates["amplify_90"].values()) == {1.0}
    for name, factor in of_rates["amplify_80"].items():
        assert factor == (1.5 if "down_proj" in str(name) else 1.0)


def test_names_that_begin_alike() -> None:
    """mergekit's filters match parts of names: each tensor must still get its own number."""
    values: dict[Scope, float] = {
        "model.layers.0.mlp.experts.down_proj": 0.1,
        "model.layers.0.mlp.experts.down_proj_two": 0.2,
        "vision.model.layers.0.mlp.experts.down_proj": 0.3,
        None: 0.4,
    }
    bias = "model.layers.0.mlp.experts.down_proj_bias"
    far = "audio.model.layers.0.mlp.experts.down_proj_two"
    shielded = shield(values, [bias, far, "model.norm.weight"])
    assert shielded == {**values, bias: 0.4, far: 0.4}
    from mergekit.config import evaluate_setting

    content: dict[str, object] = {
        "merge_method": "dp",
        "base_model": "b",
        "models": [{"model": "m", "parameters": {"weight": 1.0}}],
    }
    configuration = Recipe(content).with_weights({"m": shielded}).configuration()
    assert configuration.models is not None
    assert configuration.models[0].parameters is not None
    setting = configuration.models[0].parameters["weight"]
    for name in (
        *filter(None, values),
        bias,
        far,
        "model.norm.weight",
        "model.layers.0.other.weight",
    ):
        wanted = values.get(name, 0.4)
        assert evaluate_setting(str(name), setting, 0.7, validate=float) == wanted
        assert value_at(shielded, str(name)) == wanted


def test_stacks_whose_names_end_alike() -> None:
    weights: dict[Scope, float] = {
        Block("model.layers", 1): 0.1,
        Block("language_model.layers", 1): 0.2,
        Block("model.layers", 11): 0.3,
        None: 0.4,
    }
    content: dict[str, object] = {
        "merge_method": "dp",
        "base_model": "b",
        "models": [{"model": "m", "parameters": {"weight": 1.0}}],
    }
    configuration = Recipe(content).with_weights({"m": weights}).configuration()
    from mergekit.config import evaluate_setting

    assert configuration.models is not None
    assert configuration.models[0].parameters is not None
    setting = configuration.models[0].parameters["weight"]
    for name, expected in {
        "model.layers.1.mlp.weight": 0.1,
        "language_model.layers.1.mlp.weight": 0.2,
        "model.layers.11.mlp.weight": 0.3,
        "model.norm.weight": 0.4,
    }.items():
        assert evaluate_setting(name, setting, 0.7, validate=float) == expected
