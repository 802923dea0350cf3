"""Compare weights found by search and by AdaMerging, on the quickstart's models.

    python examples/merging.py FOLDER --seed 0 --seed 1 --seed 2

Merges two and three domains (as in the paper's Tables 5 and 6), each pruned by 80 and by 90 %, over
several training seeds. Weights are found on the dev parts of the tasks, by AdaMerging or by a
search, which drops most of its candidates on a part of the items. The table on stdout shows the
Domain-Ratios on the test parts. Finished rows are kept in FOLDER, which `strategies.py` may share:
the same command resumes, and several processes may share FOLDER, each with its own seeds. A FOLDER
belongs to one version of this file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import mean

import click
from domains import DOMAINS
from evidence import Result, Test, format_cell, make_recipe, measure, read_results, read_tasks
from pydantic import TypeAdapter

from dppa_mergekit.adamerging.descent import Descent
from dppa_mergekit.adamerging.objectives import START
from dppa_mergekit.adamerging.recipe_learning import AdaMerge
from dppa_mergekit.live.placement import AS_STORED
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.report.markdown_tables import table
from dppa_mergekit.search.weight_search import WEIGHT_OPTIONS, WeightSearch

SETS = (tuple(DOMAINS), *combinations(DOMAINS, 2))
STEPS, EVERY, LEARNING_RATE = 100, 10, 2e-3
CANDIDATES = 24
"""Candidates of a search."""

DEV_ITEMS = 100
"""Items of each dev task."""

COMPLETIONS = 100
"""Labelled examples of each task for the objective `loss`."""


@dataclass(frozen=True)
class Merge:
    """A way to merge.

    Attributes:
        label: Label of the row.
        method: The merge method.
        density: Density of every delta; None if the method has none.
    """

    label: str
    method: str
    density: float | None

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters of every model."""
        density = {} if self.density is None else {"density": self.density}
        return {"weight": START, **density}


MERGES = (
    Merge("task arithmetic", "dp", 1.0),
    *(
        Merge(f"{label}, {100 - 100 * density:.0f} %", method, density)
        for density in (0.2, 0.1)
        for label, method in (("DARE", "dare_dpa"), ("TIES", "ties"), ("dppa", "dppa"))
    ),
)

WAYS = ("search", "entropy", "distill", "loss")


@dataclass(frozen=True)
class Row:
    """A row of the results.

    Attributes:
        domains: The domains that are merged.
        merge: How they are merged.
        way: How the weights are found: `search`, or an objective of AdaMerging.
    """

    domains: Sequence[str]
    merge: Merge
    way: str


ROWS = {
    f"{' + '.join(domains)}: {merge.label}, {way}": Row(domains, merge, way)
    for domains in SETS
    for merge in MERGES
    for way in WAYS
    # AdaMerging needs a weighted sum, which TIES is not.
    if way == "search" or merge.method != "ties"
}


@dataclass(frozen=True)
class Measured:
    """The measurements of one row.

    Attributes:
        ratios: Domain -> test Domain-Ratio in percent.
        start: Dev score of the weights at the start.
        dev: Dev score of the weights that were found.
        evaluations: Number of dev scores.
        seconds: Time to find the weights.
    """

    ratios: dict[str, float]
    start: float
    dev: float
    evaluations: int
    seconds: float


def measure_row(folder: Path, test: Test, row: Row) -> Result:
    """Find the weights of a merge in one way, and score it on the test parts."""
    domains, merge = row.domains, row.merge
    name = f"{'_'.join(domains)}_{merge.method}_{merge.density:g}_{row.way}.yml"
    uniform = make_recipe(folder, merge.method, merge.parameters, domains)
    # TIES would divide by the sum of the weights, and a common weight would change nothing.
    recipe = Recipe({**uniform.content, "parameters": {"normalize": False}})
    tasks = read_tasks(folder, domains).model_copy(update={"limit": DEV_ITEMS})
    output = folder / name
    if row.way == "search":
        options = replace(WEIGHT_OPTIONS, max_evaluations=CANDIDATES)
        (result,) = WeightSearch(recipe, tasks, output, options, AS_STORED).run()
        start, dev = result.before.value, result.after.value
        evaluations, seconds = result.evaluations, result.seconds
    else:
        prompts = {name: read_completions(tasks.domains[name].dev) for name in domains}
        learned = AdaMerge(
            recipe,
            prompts if row.way == "loss" else {},
            tasks,
            output,
            row.way,
            Descent(STEPS, LEARNING_RATE, granularity="block", every=EVERY, patience=STEPS),
            AS_STORED,
        ).run()
        first, best = learned.states[0].evaluation, learned.best.evaluation
        assert first is not None
        assert best is not None
        start, dev = first.value, best.value
        evaluations, seconds = len(learned.states), learned.states[-1].seconds
    return {
        "ratios": test.compute_ratios(Recipe.read(output), domains),
        "start": start,
        "dev": dev,
        "evaluations": evaluations,
        "seconds": seconds,
    }


def read_completions(tasks: Sequence[str]) -> list[Prompt]:
    """Return the first items of each dev task, as prompts with completions."""
    prompts = []
    for task in tasks:
        path = Path(__file__).with_name("tasks") / f"{task}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()[:COMPLETIONS]
        for item in map(json.loads, lines):
            prompts.append(Prompt(item["prompt"], f" {item['answer']}"))
    return prompts


def print_table(folder: Path) -> None:
    """Print means and standard deviations over the seeds and, of two domains, the three pairs."""
    read = TypeAdapter(Measured)
    results = [
        (ROWS[name], read.validate_python(result))
        for name, result in read_results(folder)
        if name in ROWS
    ]
    lines = []
    for number in (3, 2):
        for merge in MERGES:
            for way in WAYS:
                chosen = [
                    result
                    for row, result in results
                    if (len(row.domains), row.merge, row.way) == (number, merge, way)
                ]
                if chosen:
                    lines.append([str(number), merge.label, way, *_format_cells(chosen)])
    head = ["domains", "merge", "weights by", "mean", *DOMAINS, "evaluations", "seconds"]
    click.echo(table(head, lines, names=3), nl=False)


def _format_cells(results: Sequence[Measured]) -> list[str]:
    """Return the mean Domain-Ratio, those of all domains, evaluations and seconds."""
    return [
        format_cell([mean(result.ratios.values()) for result in results]),
        *(
            format_cell([result.ratios[name] for result in results if name in result.ratios])
            for name in DOMAINS
        ),
        f"{mean(result.evaluations for result in results):.0f}",
        f"{mean(result.seconds for result in results):.0f}",
    ]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", "seeds", multiple=True, type=int, default=[0, 1, 2], show_default=True)
def main(folder: Path, seeds: tuple[int, ...]) -> None:
    """Train models below FOLDER, find weights of their merges, and print the test scores."""
    measure(
        folder, seeds, list(ROWS), lambda models, test, row: measure_row(models, test, ROWS[row])
    )
    print_table(folder)


if __name__ == "__main__":
    main()
