"""Every parameter as a gradient over the layers, and by filters of names."""

from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from checkpoints import recipe, unequal
from commands import Merge
from oracle_merges import MODELS, Parameters, Tensors, base_and_tuned, expected, of_family
from settings import FORMS, by_name, resolve

from dppa_mergekit.method_table import VARIANTS

PER_MODEL: dict[str, tuple[float, float, float]] = {
    "weight": (0.2, 0.5, 0.9),
    "density": (0.1, 0.25, 0.42),
    **{f"amplify_{rate}": (0.5, 1.3, 2.0) for rate in oracle.RATES},
    "amplify_dense": (0.0, 0.7, 1.6),
}
SHARED: dict[str, tuple[Any, Any, Any]] = {
    "lambda": (0.5, 1.2, -0.3),
    "normalize": (True, False, True),
    "max_fluctuation": (0.0, 0.05, 0.19),
    "significance": ("count", "magnitude", "count"),
    "significance_multiple": (1.0, 3.0, 5.5),
    "block_significance_multiple": (1.5, 2.5, 5.0),
}


def test_every_parameter_is_tried_with_gradients_and_filters() -> None:
    (variant,) = [each for each in VARIANTS if each.name == "dppa"]
    per_model = {each.name for each in variant.parameters if each.per_model}
    shared = {each.name for each in variant.parameters if not each.per_model}
    assert per_model == set(PER_MODEL)
    assert shared == set(SHARED)


def two_models(parameter: str, setting: Any = None) -> dict[str, dict[str, Any]]:
    """Dense enough for the partition that `parameter` amplifies to hold something."""
    density = 0.25
    if parameter.removeprefix("amplify_").isdecimal():
        density = min(0.95, 1.05 - int(parameter.removeprefix("amplify_")) / 100)
    models: dict[str, dict[str, Any]] = {
        "math": {"weight": 0.6, "density": density},
        "law": {"weight": 0.5, "density": density + 0.03},
    }
    if setting is not None:
        models["math"][parameter] = setting
    return models


@pytest.mark.parametrize("form", ["two ends", "filters", "gradient in a filter"])
@pytest.mark.parametrize("parameter", PER_MODEL)
def test_parameter_of_one_model(parameter: str, form: str, family: Path, merge: Merge) -> None:
    setting = FORMS[form](*PER_MODEL[parameter])
    given = [*two_models(parameter, by_name(setting)).values()]
    wanted = expected(base_and_tuned(family), given)
    merged = merge(recipe(family, models=two_models(parameter, setting)))
    assert not unequal(merged, wanted)
    plain = merge(recipe(family, models=two_models(parameter)), output="plain")
    assert unequal(plain, wanted)


@pytest.mark.parametrize("parameter", PER_MODEL)
def test_parameter_of_all_models(parameter: str, family: Path, merge: Merge) -> None:
    setting = FORMS["gradient"](*PER_MODEL[parameter])
    models = two_models(parameter)
    for values in models.values():
        values.pop(parameter, None)
    given = [{**values, parameter: by_name(setting)} for values in models.values()]
    merged = merge(recipe(family, models=models, parameters={parameter: setting}))
    assert not unequal(merged, expected(base_and_tuned(family), given))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("parameter", SHARED)
def test_shared_parameter(parameter: str, form: str, family: Path, merge: Merge) -> None:
    setting = FORMS[form](*SHARED[parameter])
    wanted = expected(
        base_and_tuned(family), [*MODELS.values()], shared={parameter: by_name(setting)}
    )
    assert unequal(of_family(family), wanted)
    merged = merge(recipe(family, models=MODELS, parameters={parameter: setting}))
    assert not unequal(merged, wanted)


def test_a_model_falls_back_on_the_recipe_where_no_filter_holds(family: Path, merge: Merge) -> None:
    own = [{"filter": "mlp", "value": 0.4}]
    everywhere = [{"filter": "layers.1.", "value": 0.15}]

    def density(name: str) -> float | None:
        return resolve(own, name) or resolve(everywhere, name)

    models = {"math": {"weight": 1.0, "density": own}, "law": {"weight": 0.5}}
    given = [{"weight": 1.0, "density": density}, {"weight": 0.5, "density": by_name(everywhere)}]
    merged = merge(recipe(family, models=models, parameters={"density": everywhere}))
    assert not unequal(merged, expected(base_and_tuned(family), given))


@pytest.mark.parametrize("parameter", ["weight", "density", "lambda", "normalize"])
def test_consensus_with_gradients(parameter: str, family: Path, merge: Merge) -> None:
    values = {**PER_MODEL, **SHARED}[parameter]
    setting = FORMS["gradient"](*values)
    models = {name: {k: v for k, v in MODELS[name].items() if k != parameter} for name in MODELS}
    given: list[Parameters] = list(models.values())
    shared: Parameters = {parameter: by_name(setting)}
    if parameter in PER_MODEL:
        given, shared = [{**own, **shared} for own in given], {}
    wanted = expected(base_and_tuned(family), given, "dppa_ties", shared)
    merged = merge(recipe(family, "dppa_ties", models, parameters={parameter: setting}))
    assert not unequal(merged, wanted)


@pytest.mark.parametrize(
    ("parameter", "low", "high"),
    [("seed", 3, 8), ("density", 0.2, 0.45), ("amplify_90", 0.5, 1.7), ("weight", 0.3, 0.9)],
)
def test_random_partitions_with_filters_equal_plain_merges(
    parameter: str, low: float, high: float, family: Path, merge: Merge
) -> None:
    def merged(setting: Any, output: str) -> Tensors:
        models = {name: dict(MODELS[name]) for name in MODELS}
        for values in models.values():
            values.pop(parameter, None)
        content = recipe(family, "dare_dpa", models, parameters={parameter: setting})
        return merge(content, output=output)

    setting = [{"filter": "layers.1.", "value": low}, {"value": high}]
    wanted_low, wanted_high = merged(low, "low"), merged(high, "high")
    linear = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(wanted_low[linear], wanted_high[linear])
    wanted = {n: (wanted_low if "layers.1." in n else wanted_high)[n] for n in wanted_low}
    assert not unequal(merged(setting, "filtered"), wanted)
