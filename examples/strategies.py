"""What each search strategy finds on the quickstart's models: over several training seeds.

    python examples/strategies.py FOLDER --seed 0 --seed 1 --seed 2

Every model is pruned alone, by 80 and by 90 %. Factors are chosen on the dev parts of the tasks;
the table on stdout shows the Domain-Ratios on the test parts. What is finished is kept in FOLDER:
the same command goes on, and several processes may share it, each with seeds of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import click
from domains import DOMAINS
from evidence import Result, Test, cell, measure, recipe_of, results, tasks_of
from pydantic import TypeAdapter

from dppa_mergekit.live.source_model import AS_STORED
from dppa_mergekit.recipes import Recipe
from dppa_mergekit.report.markdown_tables import table
from dppa_mergekit.search.candidate_search import SearchResult
from dppa_mergekit.search.factor_search import FactorSearch, default_options

DENSITIES = (0.2, 0.1)
CANDIDATES = 40
"""Of a search, for each domain, at most."""

DARE_MASKS = 3
"""Random masks of DARE, whose ratios are averaged."""


@dataclass(frozen=True)
class Variant:
    """One row of the table, for each density.

    Attributes:
        label: Of the row.
        method: The merge method.
        strategy: By which its factors are searched; None where there are none, or all are 1.
        per_block: Whether each block has factors of its own.
    """

    label: str
    method: str
    strategy: str | None = None
    per_block: bool = False


VARIANTS = (
    Variant("dare_linear", "dare_linear"),
    Variant("dare_dpa, joint", "dare_dpa", "joint"),
    Variant("DP: dppa, factors 1", "dppa"),
    Variant("dppa, paper", "dppa", "paper"),
    Variant("dppa, joint", "dppa", "joint"),
    Variant("dppa, distill", "dppa", "distill"),
    Variant("dppa, distill for each block", "dppa", "distill", per_block=True),
)

ROWS = {
    f"{variant.label} at {density:g}": (variant, density)
    for density in DENSITIES
    for variant in VARIANTS
}


@dataclass(frozen=True)
class Spent:
    """What was measured of one row: mean candidates and seconds are for one domain."""

    ratios: dict[str, float]
    evaluations: float
    seconds: float


def measured(folder: Path, test: Test, variant: Variant, density: float) -> Result:
    """The test Domain-Ratios of one variant, and what its search took."""
    recipe = recipe_of(folder, variant.method, {"weight": 1.0, "density": density})
    found: list[SearchResult] = []
    if variant.strategy is not None:
        name = f"{variant.method}_{variant.strategy}{'_blocks' * variant.per_block}_{density:g}.yml"
        options = replace(
            default_options(variant.method),
            strategy=variant.strategy,
            max_evaluations=CANDIDATES,
            per_block=variant.per_block,
        )
        found = FactorSearch(recipe, tasks_of(folder), folder / name, options, AS_STORED).run()
        recipe = Recipe.read(folder / name)
    masks = range(DARE_MASKS if variant.method == "dare_linear" else 1)

    def ratio(domain: str) -> float:
        alone = recipe.alone(str(folder / domain))
        return mean(test.ratios(alone, [domain], mask)[domain] for mask in masks)

    return {
        "ratios": {domain: ratio(domain) for domain in DOMAINS},
        "evaluations": sum(each.evaluations for each in found) / len(DOMAINS),
        "seconds": sum(each.seconds for each in found) / len(DOMAINS),
    }


def print_table(folder: Path) -> None:
    """Means over the seeds, and their standard deviations."""
    read = TypeAdapter(Spent)
    every = [(row, read.validate_python(each)) for row, each in results(folder) if row in ROWS]
    lines = []
    for row, (variant, density) in ROWS.items():
        own = [each for name, each in every if name == row]
        if own:
            cells = [cell([each.ratios[domain] for each in own]) for domain in DOMAINS]
            spent = [mean(each.evaluations for each in own), mean(each.seconds for each in own)]
            texts = ["" if variant.strategy is None else f"{each:.0f}" for each in spent]
            lines.append([f"{100 - 100 * density:.0f} %", variant.label, *cells, *texts])
    head = ["pruned by", "factors", *DOMAINS, "candidates", "seconds"]
    click.echo(table(head, lines, names=2), nl=False)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", "seeds", multiple=True, type=int, default=[0, 1, 2], show_default=True)
def main(folder: Path, seeds: tuple[int, ...]) -> None:
    """Train models below FOLDER, search factors by every strategy, and print the test scores."""
    measure(
        folder,
        seeds,
        list(ROWS),
        lambda models, test, row: measured(models, test, *ROWS[row]),
    )
    print_table(folder)


if __name__ == "__main__":
    main()
