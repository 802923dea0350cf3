"""The README says what the package does."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import save_family

from dppa_mergekit import method_table
from dppa_mergekit import parameters as recipe
from dppa_mergekit.scoring.tasks import TasksFile

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

PER_MODEL = (
    recipe.WEIGHT,
    recipe.DENSITY,
    *recipe.AMPLIFICATIONS,
    recipe.AMPLIFY_DENSE,
    recipe.ACTIVATIONS,
)
SHARED = (
    recipe.MAX_FLUCTUATION,
    recipe.significance("magnitude"),
    recipe.SIGNIFICANCE_MULTIPLE,
    recipe.BLOCK_SIGNIFICANCE_MULTIPLE,
    recipe.LAMBDA,
    recipe.normalize(False),
    recipe.AMPLIFY,
    recipe.MOMENT_SHRINKAGE,
    recipe.MOMENT_RIDGE,
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
            return "none" if parameter.per_model else "`significance_multiple`"
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
    taken = {parameter.name for method in method_table.METHODS for parameter in method.parameters}
    assert taken == {parameter.name for parameter in (*PER_MODEL, *SHARED)}


def test_defaults_that_differ_by_method() -> None:
    defaults = {
        (method.name, parameter.name): parameter.default
        for method in method_table.METHODS
        for parameter in method.parameters
    }
    assert defaults["owl", "significance"] == "count"
    assert defaults["dppa_ties", "normalize"] is True
    assert "magnitude (`owl`: count)" in README
    assert defaults["dppa_regmean", "normalize"] is True
    assert defaults["dppa_regmean", "weight"] == 1
    assert "false (`dppa_ties`, by inputs: true)" in README
    assert "required (by inputs: 1)" in README


def test_method_table() -> None:
    listed = [row[0].strip("`") for row in rows("## Methods")]
    assert listed == [variant.name for variant in method_table.METHODS]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_recipe_is_one() -> None:
    recipe_text, _ = blocks("yaml")
    content = yaml.safe_load(recipe_text)
    known = {parameter.name: parameter for parameter in PER_MODEL}
    assert content["merge_method"] == "dppa"
    for model in content["models"]:
        for name, value in model["parameters"].items():
            assert known[name].check(value) == value


def test_the_python_runs() -> None:
    _, _, *merging = blocks("python")
    names: dict[str, object] = {}
    exec("\n".join(merging), names)
    pruned, deltas = names["pruned"], names["deltas"]
    assert int((pruned != 0).sum()) == round(0.2 * pruned.numel())  # type: ignore[attr-defined]
    assert torch.equal(deltas[names["name"]], pruned)  # type: ignore[index]


def test_the_tasks_file_is_one(tmp_path: Path) -> None:
    _, text = blocks("yaml")
    (tmp_path / "tasks").mkdir()
    path = tmp_path / "tasks.yml"
    path.write_text(text, encoding="utf-8")
    assert list(TasksFile.read(path).domains) == ["math"]


def test_search_and_learning_in_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_family(tmp_path)
    (tmp_path / "recipe.yml").write_text(blocks("yaml")[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec("\n".join(blocks("python")[:2]), names)
    assert names["found"].before.value == 100.0  # type: ignore[attr-defined]
    assert list(names["learned"].coefficients) == ["./math", "./law"]  # type: ignore[attr-defined]


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    written = r"^python3 -m venv .* -m pytest -n 2 --dist worksteal$"
    (command,) = re.findall(written, README, flags=re.MULTILINE)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace(" --quiet", "")
    for step in command.split(" && "):
        assert step in script
