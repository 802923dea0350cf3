"""Hold contests of merge methods at equal budget between six experts of one base.

    python examples/method_contest.py FOLDER --seed 0 --seed 1 --seed 2

The experts are those of `six_experts.py`, which may share FOLDER. For each seed this writes a
recipe with activations of 25 prompts and a tasks file, one domain an expert, and does what

    mergekit-dppa search recipe.yml --tasks tasks.yml --output best.yml --tune weights --methods ...

does. The table on stdout has, of every entrant, the mean Task-Ratio of its best candidate on dev
items (of those that were given up, on the choosing ones alone), and on test items, which took no
part: means over the seeds, with their deviation. Finished
contests and test scores are kept in FOLDER, so the same command resumes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import click
import yaml
from contest import Contest, Result, read_results
from evidence import format_cell
from finer_weights import merge
from six_experts import EXPERTS, make_command, make_contest

from dppa_mergekit.live.placement import AS_STORED
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.report.markdown_tables import table
from dppa_mergekit.scoring.tasks import TasksFile
from dppa_mergekit.search.contest_report import separation
from dppa_mergekit.search.entrants import Placed
from dppa_mergekit.search.method_contest import MethodContest
from dppa_mergekit.search.weight_search import WEIGHT_OPTIONS

METHODS = (
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_dpa",
    "dppa",
    "dppa_regmean",
    "dare_regmean",
)
CANDIDATES = 20
"""The share of each method."""

PROMPTS = 25
DEV_ITEMS = 100
"""Items of each dev task."""

TASKS = Path(__file__).resolve().with_name("tasks")


def write_inputs(folder: Path, observed: Mapping[str, str]) -> tuple[Recipe, TasksFile]:
    """Write the recipe and the tasks file of a contest beside the experts.

    Args:
        folder: The folder of the experts.
        observed: Expert -> the file of its activations.
    """
    content = {
        "merge_method": "dppa_regmean",
        "base_model": str(folder / "base"),
        "models": [
            {"model": str(folder / name), "parameters": {"activations": path}}
            for name, path in observed.items()
        ],
        "dtype": "bfloat16",
    }
    domains = {
        task.name: {
            "model": str(folder / task.name),
            "dev": {f"{task.name}_dev": "exact_match,none"},
            "test": {f"{task.name}_test": "exact_match,none"},
        }
        for task in EXPERTS
    }
    tasks = {
        "include_path": str(TASKS),
        "batch_size": 250,
        "limit": DEV_ITEMS,
        "domains": domains,
    }
    for name, written in (("contest_recipe.yml", content), ("contest_tasks.yml", tasks)):
        (folder / name).write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")
    return Recipe.read(folder / "contest_recipe.yml"), TasksFile.read(folder / "contest_tasks.yml")


def hold(folder: Path) -> None:
    """Hold the contest of a seed, and score the best candidate of every entrant on test items."""
    experts = make_contest(folder)
    recipe, tasks = write_inputs(folder, experts.observe(PROMPTS))
    contest = MethodContest(
        recipe,
        tasks,
        folder / "contest.yml",
        replace(WEIGHT_OPTIONS, max_evaluations=CANDIDATES * len(METHODS)),
        AS_STORED,
        methods=METHODS,
    )
    placed = contest.run()
    click.echo(f"{folder.name}: {separation(placed)}", err=True)
    _score(folder / "contest.json", contest, placed, experts)


def _score(kept: Path, contest: MethodContest, placed: Sequence[Placed], experts: Contest) -> None:
    """Score the entrants that a file does not have yet, and add each to it."""
    for one in placed:
        label, results = one.entrant.label, read_results(kept)
        if label in results:
            continue
        merged = merge(contest.recipe_with({label: one.standing.settings}))
        _, found = experts.judge(merged, "test")
        record: Result = {**one.to_record(), **found}
        kept.write_text(json.dumps({**results, label: record}, indent=1) + "\n", encoding="utf-8")


def print_table(folder: Path) -> None:
    """Print the entrants of all seeds, the best on dev first."""
    of_seeds = [read_results(path) for path in sorted(folder.glob("seed_*/contest.json"))]
    labels = list(dict.fromkeys(label for results in of_seeds for label in results))
    lines = []
    for label in labels:
        found = [results[label] for results in of_seeds if label in results]
        dev = [float(str(one["value"])) for one in found]
        test = [mean(one["ratios"].values()) for one in found]  # type: ignore[attr-defined]
        given_up = sum(bool(one["given_up"]) for one in found)
        candidates = mean(int(str(one["evaluations"])) for one in found)
        seconds = mean(float(str(one["seconds"])) for one in found)
        cells = [format_cell(dev), format_cell(test), f"{candidates:.0f}", f"{seconds:.0f}"]
        lines.append((mean(dev), [label, *cells, f"{given_up} of {len(found)}"]))
    lines.sort(key=lambda line: -line[0])
    head = ["entrant", "dev", "test", "candidates", "seconds", "given up"]
    click.echo(table(head, [line for _, line in lines]), nl=False)


if __name__ == "__main__":
    make_command(
        "Train six experts of one base below FOLDER, hold a contest for each seed, and print them.",
        hold,
        print_table,
    )()
