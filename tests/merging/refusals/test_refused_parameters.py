"""Values of parameters that are not allowed, or missing."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import recipe, write_recipe
from commands import RunYaml
from refused_merges import refused

AT_LEAST_0 = "allowed is a finite float32 number of at least 0."


OUT_OF_RANGE = [
    ("math", "density", 1.5, "density is 1.5; allowed is a number from 0 to 1."),
    ("math", "density", -1, "density is -1; allowed is a number from 0 to 1."),
    ("math", "density", math.nan, "density is nan; allowed is a number from 0 to 1."),
    ("math", "density", [0.2, 1.5], "density is 1.5; allowed is a number from 0 to 1."),
    ("math", "density", "much", "density is 'much'; allowed is a number from 0 to 1."),
    ("math", "density", True, "density is True; allowed is a number from 0 to 1."),
    ("math", "weight", math.nan, "weight is nan; allowed is a finite float32 number."),
    ("math", "weight", math.inf, "weight is inf; allowed is a finite float32 number."),
    ("math", "weight", 1e39, "weight is 1e+39; allowed is a finite float32 number."),
    (
        "math",
        "amplify_90",
        -0.1,
        f"amplify_90 is -0.1; {AT_LEAST_0}",
    ),
    (
        "math",
        "amplify_0",
        math.inf,
        f"amplify_0 is inf; {AT_LEAST_0}",
    ),
    (
        "math",
        "amplify_dense",
        -1,
        f"amplify_dense is -1; {AT_LEAST_0}",
    ),
    (None, "lambda", math.nan, "lambda is nan; allowed is a finite float32 number."),
    (None, "lambda", -math.inf, "lambda is -inf; allowed is a finite float32 number."),
    (None, "max_fluctuation", -0.1, "max_fluctuation is -0.1; allowed is a number from 0 to 1."),
    (
        None,
        "significance_multiple",
        math.nan,
        "significance_multiple is nan; allowed is a finite float32 number of at least 0.",
    ),
    (
        None,
        "block_significance_multiple",
        -3,
        "block_significance_multiple is -3; allowed is a finite float32 number of at least 0.",
    ),
    (None, "significance", "size", "significance is 'size'; allowed is magnitude or count."),
    (None, "normalize", "perhaps", "normalize is 'perhaps'; allowed is true or false."),
]


@pytest.mark.parametrize(("model", "name", "value", "sentence"), OUT_OF_RANGE)
def test_a_value_that_is_not_allowed(
    pristine: Path,
    tmp_path: Path,
    run_yaml: RunYaml,
    model: str | None,
    name: str,
    value: object,
    sentence: str,
) -> None:
    if model is None:
        content = recipe(pristine, parameters={name: value})
    else:
        content = recipe(pristine, models={model: {"weight": 0.5, **{name: value}}})
    assert refused(run_yaml(content), tmp_path) == sentence


@pytest.mark.parametrize("value", [1.5, -1, "one", 10**400])
def test_a_seed_that_is_no_whole_number(
    pristine: Path, tmp_path: Path, run_yaml: RunYaml, value: object
) -> None:
    content = recipe(pristine, "dare_dpa", parameters={"seed": value})
    assert refused(run_yaml(content), tmp_path).startswith(f"seed is {value!r}; allowed is a whole")


def test_a_model_without_weight(pristine: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    content = recipe(pristine, models={"math": {"weight": 1.0}, "law": {"density": 0.2}})
    sentence = refused(run_yaml(content), tmp_path)
    assert sentence.startswith(f"{pristine}/law: there is no weight for model.embed_tokens.weight;")


def test_a_weight_for_some_tensors_only(pristine: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    some = [{"filter": "mlp", "value": 0.5}]
    content = recipe(pristine, models={"math": {"weight": some}})
    assert "filters need a last entry without a filter" in refused(run_yaml(content), tmp_path)


@pytest.mark.parametrize("parameter", ["dtype", "out_dtype"])
@pytest.mark.parametrize("value", ["bf16", "int64"])
def test_a_dtype_that_is_none(
    pristine: Path, tmp_path: Path, run_yaml: RunYaml, parameter: str, value: str
) -> None:
    sentence = refused(run_yaml(recipe(pristine, **{parameter: value})), tmp_path)
    assert sentence == (
        f"{parameter} is {value!r}; allowed is bfloat16, float16, float32, float64."
    )


def test_no_traceback_from_the_real_command(pristine: Path, tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path / "recipe.yml", recipe(pristine, models={"math": {"weight": 1, "density": 7}})
    )
    command = [
        str(Path(sys.executable).with_name("mergekit-yaml")),
        str(path),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "Error: density is 7; allowed is a number from 0 to 1."
