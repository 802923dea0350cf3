"""The README says what the package does."""

import re
from pathlib import Path

import pytest
import yaml

from dppa_mergekit import methods
from dppa_mergekit import parameters as recipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

PER_MODEL = (recipe.WEIGHT, recipe.DENSITY, *recipe.AMPLIFICATIONS, recipe.AMPLIFY_DENSE)
SHARED = (
    recipe.MAX_FLUCTUATION,
    recipe.significance("magnitude"),
    recipe.SIGNIFICANCE_MULTIPLE,
    recipe.BLOCK_SIGNIFICANCE_MULTIPLE,
    recipe.LAMBDA,
    recipe.normalize(False),
    recipe.SEED,
)


def rows(after: str) -> list[list[str]]:
    """The cells of the table that follows a sentence."""
    table = README.split(after)[1].split("\n\n")[1]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


def default(parameter: recipe.Parameter) -> str:
    match parameter.default:
        case recipe.REQUIRED:
            return "required"
        case None:
            return "`significance_multiple`"
        case bool():
            return str(parameter.default).lower()
        case int() | float():
            return f"{parameter.default:g}"
    return str(parameter.default)


@pytest.mark.parametrize(
    ("after", "table"),
    [("Parameters of each model.", PER_MODEL), ("Parameters of the whole merge", SHARED)],
)
def test_parameter_tables(after: str, table: tuple[recipe.Parameter, ...]) -> None:
    for row, parameter in zip(rows(after), table, strict=True):
        assert row[0] == f"`{parameter.name}`"
        assert row[1].split(" (")[0] == default(parameter)
        assert row[2:] == [parameter.allowed, parameter.sentence]


def test_the_tables_hold_every_parameter_of_every_method() -> None:
    taken = {each.name for variant in methods.VARIANTS for each in variant.parameters}
    assert taken == {each.name for each in (*PER_MODEL, *SHARED)}


def test_defaults_that_differ_by_method() -> None:
    defaults = {
        (variant.name, each.name): each.default
        for variant in methods.VARIANTS
        for each in variant.parameters
    }
    assert defaults["owl", "significance"] == "count"
    assert defaults["dppa_ties", "normalize"] is True
    assert "magnitude (`owl`: count)" in README
    assert "false (`dppa_ties`: true)" in README


def test_method_table() -> None:
    listed = [row[0].strip("`") for row in rows("## Methods")]
    assert listed == [variant.name for variant in methods.VARIANTS]


def test_the_recipe_is_one() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    content = yaml.safe_load(text)
    known = {each.name: each for each in PER_MODEL}
    assert content["merge_method"] == "dppa"
    for model in content["models"]:
        for name, value in model["parameters"].items():
            assert known[name].check(value) == value


def test_the_python_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    exec("\n".join(blocks), names)
    pruned = names["pruned"]
    assert int((pruned != 0).sum()) == round(0.2 * pruned.numel())  # type: ignore[attr-defined]


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    (command,) = re.findall(r"^python3 -m venv .*pytest$", README, flags=re.MULTILINE)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace(" --quiet", "")
    for step in command.split(" && "):
        assert step in script
