"""README and guides say what the package does."""

import re
from pathlib import Path

import pytest
from quotes import HERE, Quotes, read_tables

from dppa_mergekit import method_table
from dppa_mergekit import parameters as recipe
from dppa_mergekit.analysis import evidence

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = ROOT / "examples" / "guides"
METHODS = (GUIDES / "methods_and_parameters.md").read_text(encoding="utf-8")

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


def rows(after: str, page: str = METHODS) -> list[list[str]]:
    """The cells of the table that follows a sentence."""
    table = page.split(after)[1].split("\n\n")[1]
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
    assert "magnitude (`owl`: count)" in METHODS
    assert defaults["dppa_regmean", "normalize"] is True
    assert defaults["dppa_regmean", "weight"] == 1
    assert "false (`dppa_ties`, by inputs: true)" in METHODS
    assert "required (by inputs: 1)" in METHODS


def test_method_table() -> None:
    listed = [row[0].strip("`") for row in rows("# Methods and parameters")]
    assert listed == [variant.name for variant in method_table.METHODS]


HARD = "smollm2_hard: Table 5: merges of math + finance + law"
EXPERTS = "addition + function + sentiment + ratio + clause + article"
SIX = f"six_tiny_experts: Table 5: merges of {EXPERTS}"
MERGES = {
    "`task_arithmetic`": "task arithmetic, , search",
    "`ties`": "TIES, 80 %, search",
    "`dare_linear`": "`dare_linear`, 80 %, search",
    "`dare_dpa`": "DARE, linears alone, 80 %, search",
    "`dppa`": "DPPA, 80 %, search",
    "`dppa`, weights learned": "DPPA, 80 %, AdaMerging, linear",
    "`dppa_regmean`": "DPPA, by inputs, 80 %, as it starts",
    "`dppa_regmean`, factors learned": "DPPA, by inputs, 80 %, AdaMerging, linear",
}
"""Row of the README -> its row in the tables of merges."""


def test_merges_are_those_of_the_tables() -> None:
    quotes = Quotes(read_tables(HERE / "tables"))

    listed = rows("20 on the tiny models.", README)
    assert len(listed) == len(MERGES)
    for (name, *means), (start, row) in zip(listed, MERGES.items(), strict=True):
        assert name.startswith(start)
        assert means == [quotes.cell(table, row, "mean").with_spread for table in (HARD, SIX)]


def test_prunings_are_those_that_advice_is_drawn_from() -> None:
    """The tables of one model are rows of `evidence.PRUNED`."""
    known = {each.what: each.kept for each in evidence.PRUNED}

    def spans(what: str, density: float) -> list[str]:
        kept = known[what][density]
        pairs = [kept.get(method) for method in evidence.METHODS]
        return [
            "" if pair is None else " to ".join(map(str, dict.fromkeys(pair))) for pair in pairs
        ]

    for what, *cells in rows("or a sum with weights of 0.3 to 0.6.", README):
        assert cells == spans(what, 0.1)
    choosing = (GUIDES / "choosing_a_method.md").read_text(encoding="utf-8")
    what, listed = "", []
    for models, density, *cells in rows("pruned one by one:", choosing):
        what = models.partition(", ")[2] or what
        listed.append((what, float(density), cells))
    assert listed == [
        (each.what, density, spans(each.what, density))
        for each in evidence.PRUNED
        for density in each.kept
        if density >= 0.05
    ]


def test_continuous_integration_runs_the_command_of_the_readme() -> None:
    written = r"^python3 -m venv .* -m pytest -n 2 --dist worksteal$"
    (command,) = re.findall(written, README, flags=re.MULTILINE)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace(" --quiet", "")
    for step in command.split(" && "):
        assert step in script
