"""What weights found by search and by AdaMerging are worth, on the quickstart's models.

    python examples/merging.py FOLDER --seed 0 --seed 1 --seed 2

Merges of two and of three domains (as in the paper's Tables 5 and 6), each pruned by 80 and by
90 %, over several training seeds. Weights are found on the dev parts of the tasks: by a search,
most of whose candidates are given up on a part of the items, or by AdaMerging. The table on stdout
shows the Domain-Ratios on the test parts. What is finished is kept in FOLDER, which `strategies.py`
may share: the same command goes on, and several processes may share it, each with seeds of its own.
A FOLDER is of one version of this file.
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
from evidence import Result, Test, cell, measure, recipe_of, results, tasks_of
from pydantic import TypeAdapter

from dppa_mergekit.adamerging.descent import Descent
from dppa_mergekit.adamerging.objectives import START
from dppa_mergekit.adamerging.recipe_learning import AdaMerge
from dppa_mergekit.live.source_model import AS_STORED
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes import Recipe
from dppa_mergekit.report.markdown_tables import table
from dppa_mergekit.search.weight_search import WEIGHT_OPTIONS, WeightSearch

SETS = (tuple(DOMAINS), *combinations(DOMAINS, 2))
STEPS, EVERY, LEARNING_RATE = 100, 10, 2e-3
CANDIDATES = 24
"""Of a search."""

DEV_ITEMS = 100
"""Of each dev task."""

COMPLETIONS = 100
"""Labelled examples of a task that the objective `loss` has."""


@dataclass(frozen=True)
class Merge:
    """A way to merge.

    Attributes:
        label: Of the row.
        method: The merge method.
        density: Of every delta; None where the method has none.
    """

    label: str
    method: str
    density: float | None

    @property
    def parameters(self) -> dict[str, object]:
        """Of every model."""
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
    """One row of the results."""

    domains: Sequence[str]
    merge: Merge
    way: str


ROWS = {
    f"{' + '.join(domains)}: {merge.label}, {way}": Row(domains, merge, way)
    for domains in SETS
    for merge in MERGES
    for way in WAYS
    # TIES is no weighted sum.
    if way == "search" or merge.method != "ties"
}


@dataclass(frozen=True)
class Found:
    """What was measured of one row."""

    ratios: dict[str, float]
    start: float
    dev: float
    evaluations: int
    seconds: float


def measured(folder: Path, test: Test, row: Row) -> Result:
    """The test Domain-Ratios of a merge with the weights that one way finds."""
    domains, merge = row.domains, row.merge
    name = f"{'_'.join(domains)}_{merge.method}_{merge.density:g}_{row.way}.yml"
    alike = recipe_of(folder, merge.method, merge.parameters, domains)
    # TIES would divide by the sum of weights, and a common weight would be lost.
    recipe = Recipe({**alike.content, "parameters": {"normalize": False}})
    tasks = tasks_of(folder, domains).model_copy(update={"limit": DEV_ITEMS})
    output = folder / name
    if row.way == "search":
        options = replace(WEIGHT_OPTIONS, max_evaluations=CANDIDATES)
        (tuned,) = WeightSearch(recipe, tasks, output, options, AS_STORED).run()
        start, dev = tuned.before.value, tuned.after.value
        evaluations, seconds = tuned.evaluations, tuned.seconds
    else:
        prompts = {name: completions(tasks.domains[name].dev) for name in domains}
        learned = AdaMerge(
            recipe,
            prompts if row.way == "loss" else {},
            tasks,
            output,
            row.way,
            Descent(STEPS, LEARNING_RATE, every=EVERY, patience=STEPS),
            AS_STORED,
        ).run()
        first, best = learned.states[0].evaluation, learned.best.evaluation
        assert first is not None
        assert best is not None
        start, dev = first.value, best.value
        evaluations, seconds = len(learned.states), learned.states[-1].seconds
    return {
        "ratios": test.ratios(Recipe.read(output), domains),
        "start": start,
        "dev": dev,
        "evaluations": evaluations,
        "seconds": seconds,
    }


def completions(tasks: Sequence[str]) -> list[Prompt]:
    """Labelled examples: the first of each dev task."""
    found = []
    for task in tasks:
        path = Path(__file__).with_name("tasks") / f"{task}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()[:COMPLETIONS]
        for line in map(json.loads, lines):
            found.append(Prompt(line["prompt"], f" {line['answer']}"))
    return found


def print_table(folder: Path) -> None:
    """Means over the seeds, and their standard deviations; two domains are three pairs."""
    read = TypeAdapter(Found)
    every = [
        (ROWS[name], read.validate_python(each)) for name, each in results(folder) if name in ROWS
    ]
    lines = []
    for number in (3, 2):
        for merge in MERGES:
            for way in WAYS:
                own = [
                    each
                    for row, each in every
                    if (len(row.domains), row.merge, row.way) == (number, merge, way)
                ]
                if not own:
                    continue
                of_domains = [
                    cell([each.ratios[name] for each in own if name in each.ratios])
                    for name in DOMAINS
                ]
                average = cell([mean(each.ratios.values()) for each in own])
                spent = [
                    f"{mean(each.evaluations for each in own):.0f}",
                    f"{mean(each.seconds for each in own):.0f}",
                ]
                lines.append([str(number), merge.label, way, average, *of_domains, *spent])
    head = ["domains", "merge", "weights by", "mean", *DOMAINS, "evaluations", "seconds"]
    click.echo(table(head, lines, names=3), nl=False)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", "seeds", multiple=True, type=int, default=[0, 1, 2], show_default=True)
def main(folder: Path, seeds: tuple[int, ...]) -> None:
    """Train models below FOLDER, find weights of their merges, and print the test scores."""
    measure(folder, seeds, list(ROWS), lambda models, test, row: measured(models, test, ROWS[row]))
    print_table(folder)


if __name__ == "__main__":
    main()
