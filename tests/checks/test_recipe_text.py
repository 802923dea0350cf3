"""Mistakes in the text of a recipe, which stock mergekit accepts in silence."""

from pathlib import Path

import pytest
from check_command import check, of_recipe, said
from checkpoint_edits import Change
from checkpoints import recipe, write_recipe

from dppa_mergekit.errors import RecipeError
from dppa_mergekit.recipes.recipe import Recipe


def _with_parameters(content: dict, **parameters: object) -> list[object]:
    """Return the models of a recipe, with these parameters and a weight alone."""
    return [{**model, "parameters": {"weight": 1, **parameters}} for model in content["models"]]


MISTAKES: list[tuple[str, Change, str]] = [
    (
        "a method that is a list",
        lambda content: content.update(merge_method=["dppa"]),
        "merge_method: unknown method ['dppa']",
    ),
    (
        "no weight",
        lambda content: content["models"][0]["parameters"].pop("weight"),
        "there is no weight; allowed is a finite float32 number.",
    ),
    (
        "nothing but the base",
        lambda content: content.update(
            models=[{"model": content["base_model"], "parameters": {"weight": 1}}]
        ),
        "dppa: it needs at least one fine-tuned model beside the base; there is none.",
    ),
    (
        "models that are no list",
        lambda content: content.update(models="./math"),
        "models: it is not a list.",
    ),
    (
        "misspelt method",
        lambda content: content.update(merge_method="dpaa"),
        "merge_method: unknown method dpaa; did you mean dppa?",
    ),
    (
        "misspelt parameter",
        lambda content: content["models"][0]["parameters"].update(amplfy_90=2),
        "dppa has no parameter amplfy_90, and mergekit ignores it: did you mean amplify_90?",
    ),
    (
        "unknown parameter of the merge",
        lambda content: content.update(parameters={"lamda": 2}),
        "did you mean lambda?",
    ),
    (
        "parameter of another method",
        lambda content: content["models"][0]["parameters"].update(gamma=0.1),
        "dppa has no parameter gamma, and mergekit ignores it: breadcrumbs and "
        "breadcrumbs_ties have it.",
    ),
    (
        "beside parameters",
        lambda content: content["models"][0].update(weight=0.3),
        "weight stands beside parameters, and mergekit ignores it",
    ),
    (
        "at the top level",
        lambda content: content.update(normalize=True),
        "normalize stands beside parameters",
    ),
    (
        "of the whole merge, under a model",
        lambda content: content["models"][0]["parameters"].update({"lambda": 2}),
        "lambda holds for the whole merge",
    ),
    (
        "unknown key",
        lambda content: content.update(dtpe="bfloat16"),
        "mergekit ignores 'dtpe': did you mean dtype?",
    ),
    (
        "out of range",
        lambda content: content["models"][0]["parameters"].update(density=1.2),
        "density is 1.2; allowed is a number from 0 to 1.",
    ),
    (
        "NaN",
        lambda content: content["models"][0]["parameters"].update(weight=float("nan")),
        "weight is nan",
    ),
    (
        "in a gradient",
        lambda content: content["models"][0]["parameters"].update(weight=[0.1, "x"]),
        "weight is 'x'",
    ),
    (
        "in a condition",
        lambda content: content["models"][0]["parameters"].update(
            density=[{"filter": "mlp", "value": 7}, {"value": 0.2}]
        ),
        "density is 7",
    ),
    (
        "a condition that is none",
        lambda content: content["models"][0]["parameters"].update(
            density=[{"fliter": "mlp", "value": 0.1}, {"value": 0.2}]
        ),
        "allowed are filter and value",
    ),
    (
        "a filter that never counts",
        lambda content: content["models"][0]["parameters"].update(
            density=[{"value": 0.2}, {"filter": "mlp", "value": 0.1}]
        ),
        "filters after a value without one",
    ),
    (
        "a filter that fits nothing",
        lambda content: content["models"][0]["parameters"].update(
            density=[{"filter": "attnn", "value": 0.1}, {"value": 0.2}]
        ),
        "the filter 'attnn' is in no tensor's name",
    ),
    (
        "an epsilon beyond DELLA's density",
        lambda content: content.update(
            merge_method="della", models=_with_parameters(content, density=0.3, epsilon=0.3)
        ),
        "math: epsilon is 0.3; allowed at density 0.3 is a number from 0 to less than 0.3.",
    ),
    (
        "mergekit's own epsilon at a small density",
        lambda content: content.update(
            merge_method="della_linear", models=_with_parameters(content, density=0.1)
        ),
        "math: epsilon is 0.15, by default; allowed at density 0.1 is a number from 0 to less",
    ),
    (
        "a density of DELLA in a condition",
        lambda content: content.update(
            merge_method="della",
            models=_with_parameters(
                content, density=[{"filter": "mlp", "value": 0.1}, {"value": 0.4}]
            ),
        ),
        "math: epsilon is 0.15, by default; allowed at density 0.1 is",
    ),
    ("no base", lambda content: content.pop("base_model"), "dppa needs one, and there is none"),
    ("dtype", lambda content: content.update(dtype="bf16"), "dtype: it is 'bf16'; allowed is"),
    (
        "no folder",
        lambda content: content["models"][0].update(model="./nowhere"),
        "./nowhere: there is no such folder.",
    ),
    (
        "a name that no file can have",
        lambda content: content["models"][0].update(model="x" * 5000),
        "it is neither a local folder nor a repository on the Hub",
    ),
    (
        "a model that is a number",
        lambda content: content["models"][0].update(model=3),
        "models, 3: model is 3; allowed is a path or a name on the Hub.",
    ),
    (
        "no model",
        lambda content: content["models"][0].update(model=None),
        "there is no model.",
    ),
    (
        "a base that is a list",
        lambda content: content.update(base_model=["a"]),
        "recipe: base_model is ['a']; allowed is a path or a name on the Hub.",
    ),
    (
        "no folder of the base",
        lambda content: content.update(base_model="./nowhere"),
        "its base model cannot be read here to compare the others with.",
    ),
    (
        "given twice",
        lambda content: content["models"][1].update(model=content["models"][0]["model"] + "/."),
        "it is given twice",
    ),
    (
        "the base as a tuned model",
        lambda content: content["models"][1].update(model=content["base_model"] + "/."),
        "it is the base model, spelt as",
    ),
]


@pytest.mark.parametrize(
    ("change", "sentence"), [each[1:] for each in MISTAKES], ids=[each[0] for each in MISTAKES]
)
def test_mistakes_in_a_recipe(change: Change, sentence: str, family: Path, tmp_path: Path) -> None:
    content = recipe(family)
    change(content)
    done = of_recipe(tmp_path, content)
    assert any(sentence in line for line in done.stdout.splitlines()), done.stdout
    assert done.exit_code == (0 if "in no tensor's name" in sentence else 1)


def test_mergekits_own_methods(family: Path, tmp_path: Path) -> None:
    models = {"math": {"weight": 1.0, "amplify_90": 2.0}}
    done = of_recipe(tmp_path, recipe(family, "ties", models))
    assert said(done, "error") == [
        f"error: models, {family / 'math'}: ties has no parameter amplify_90, and mergekit ignores "
        f"it: dppa, dppa_ties, dare_dpa, dppa_regmean and dare_regmean have it."
    ]
    models = {"math": {"weight": float("inf")}}
    assert "not a finite number" in of_recipe(tmp_path, recipe(family, "ties", models)).stdout


@pytest.mark.parametrize(
    ("density", "epsilon", "sentence"),
    [
        (0.1, "1e-2", None),
        ("5e-2", None, "epsilon is 0.15, by default; allowed at density 0.05 is a number from 0"),
        ("2e-1", "3e-1", "epsilon is 0.3; allowed at density 0.2 is a number from 0"),
    ],
)
def test_numbers_that_yaml_reads_as_text(
    density: object, epsilon: object, sentence: str | None, family: Path, tmp_path: Path
) -> None:
    parameters = {"weight": "1e+0", "density": density}
    if epsilon is not None:
        parameters["epsilon"] = epsilon
    done = of_recipe(tmp_path, recipe(family, "della", {"math": parameters}))
    errors = said(done, "error")
    assert len(errors) == (sentence is not None)
    assert sentence is None or sentence in errors[0]


def test_nothing_is_kept(family: Path, tmp_path: Path) -> None:
    models = {"math": {"weight": 1.0, "density": 0.0}, "law": {"weight": 1.0, "density": 0.1}}
    done = of_recipe(tmp_path, recipe(family, models=models))
    assert done.exit_code == 0
    assert said(done, "warning") == []
    assert said(done, "note")[:1] == [
        f"note: {family / 'math'}: density is 0, so that nothing is kept of its linears' deltas."
    ]


def test_something_is_kept(family: Path, tmp_path: Path) -> None:
    filtered = [{"filter": "mlp", "value": 0.0}]
    models = {"math": {"weight": 1.0, "density": filtered}}
    assert "nothing is kept" not in of_recipe(tmp_path, recipe(family, models=models)).stdout


def test_keys_that_are_there_twice(family: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yml", recipe(family))
    path.write_text(path.read_text() + "merge_method: ties\n", encoding="utf-8")
    lines = len(path.read_text().splitlines())
    done = check(path)
    assert f"error: line {lines}: merge_method is already set in line 2: keep one." in done.stdout
    # What a merge key brings may be overridden.
    base, math, law = (family / name for name in ("base", "math", "law"))
    text = f"""merge_method: dppa
base_model: {base}
models:
  - model: {math}
    parameters: &shared {{weight: 0.5, density: 0.2}}
  - model: {law}
    parameters: {{<<: *shared, weight: 0.4}}
"""
    path.write_text(text, encoding="utf-8")
    assert check(path).exit_code == 0
    path.write_text(text.replace("weight: 0.4", "weight: 0.4, weight: 0.3"), encoding="utf-8")
    assert "error: line 7: weight is already set in line 7" in check(path).stdout
    path.write_text("- 1\n", encoding="utf-8")
    assert "it is not a mapping with merge_method" in check(path).stdout


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models: [", "expected the node content, but found '<stream end>' (line 1, column 10)"),
        ("a: 1\nx: y: z", "mapping values are not allowed here (line 2, column 5)"),
        ("base_model: {{ base }}", "found unhashable key (line 1, column 14)"),
        ("? [a, b]\n: c", "found unhashable key (line 1, column 3)"),
        ("merge_method: dppa\0", "unacceptable character #x0000 (character 19 of the file)"),
        ("base_model: 2024-02-30", "day is out of range for month"),
    ],
)
def test_what_is_not_yaml(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(text, encoding="utf-8")
    assert said(check(path), "error") == [f"error: recipe: it is not YAML: {sentence}."]
    with pytest.raises(RecipeError) as refused:
        Recipe.read(path)
    assert refused.value.message == f"{path} is not YAML: {sentence}."
