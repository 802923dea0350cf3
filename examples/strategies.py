"""Compare the search strategies on the quickstart's models over several training seeds.

    python examples/strategies.py FOLDER --seed 0 --seed 1 --seed 2

Every model is pruned alone, by 80 and by 90 %. Factors are chosen on the dev parts of the tasks;
the table on stdout shows the Domain-Ratios on the test parts. Finished rows are kept in FOLDER: the
same command resumes, and several processes may share FOLDER, each with its own seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import click
from domains import DOMAINS
from evidence import Result, Test, format_cell, make_recipe, measure, read_results, read_tasks
from pydantic import TypeAdapter

from dppa_mergekit.live.placement import AS_STORED
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.report.markdown_tables import table
from dppa_mergekit.search.factor_search import FactorSearch, default_options
from dppa_mergekit.search.results import SearchResult

DENSITIES = (0.2, 0.1)
CANDIDATES = 40
"""Candidates of a search for each domain, at most."""

DARE_MASKS = 3
"""Number of random masks of DARE, whose ratios are averaged."""


@dataclass(frozen=True)
class Variant:
    """One row of the table, for each density.

    Attributes:
        label: Label of the row.
        method: The merge method.
        strategy: Strategy that searches its factors; None if it has none, or all are 1.
        per_block: Whether each block has its own factors.
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
class Measured:
    """The measurements of one row; candidates and seconds are means over the domains."""

    ratios: dict[str, float]
    evaluations: float
    seconds: float


def measure_variant(folder: Path, test: Test, variant: Variant, density: float) -> Result:
    """Return the test Domain-Ratios of a variant, and the candidates and seconds of its search."""
    recipe = make_recipe(folder, variant.method, {"weight": 1.0, "density": density})
    found: list[SearchResult] = []
    if variant.strategy is not None:
        name = f"{variant.method}_{variant.strategy}{'_blocks' * variant.per_block}_{density:g}.yml"
        options = replace(
            default_options(variant.method),
            strategy=variant.strategy,
            max_evaluations=CANDIDATES,
            per_block=variant.per_block,
        )
        found = FactorSearch(recipe, read_tasks(folder), folder / name, options, AS_STORED).run()
        recipe = Recipe.read(folder / name)
    masks = range(DARE_MASKS if variant.method == "dare_linear" else 1)

    def compute_ratio(domain: str) -> float:
        alone = recipe.with_only(str(folder / domain))
        return mean(test.compute_ratios(alone, [domain], mask)[domain] for mask in masks)

    return {
        "ratios": {domain: compute_ratio(domain) for domain in DOMAINS},
        "evaluations": sum(result.evaluations for result in found) / len(DOMAINS),
        "seconds": sum(result.seconds for result in found) / len(DOMAINS),
    }


def print_table(folder: Path) -> None:
    """Print means over the seeds and their standard deviations."""
    read = TypeAdapter(Measured)
    results = [
        (row, read.validate_python(result)) for row, result in read_results(folder) if row in ROWS
    ]
    lines = []
    for row, (variant, density) in ROWS.items():
        seeds = [result for name, result in results if name == row]
        if seeds:
            cells = [format_cell([seed.ratios[domain] for seed in seeds]) for domain in DOMAINS]
            spent = [mean(seed.evaluations for seed in seeds), mean(seed.seconds for seed in seeds)]
            texts = ["" if variant.strategy is None else f"{number:.0f}" for number in spent]
            lines.append([f"{100 - 100 * density:.0f} %", variant.label, *cells, *texts])
    head = ["pruned by", "factors", *DOMAINS, "candidates", "seconds"]
    click.echo(table(head, lines, names=2), nl=False)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", "seeds", multiple=True, type=int, default=[0, 1, 2], show_default=True)
def main(folder: Path, seeds: tuple[int, ...]) -> None:
    """Train models below FOLDER, search factors by every strategy, and print test scores."""
    measure(
        folder,
        seeds,
        list(ROWS),
        lambda models, test, row: measure_variant(models, test, *ROWS[row]),
    )
    print_table(folder)


if __name__ == "__main__":
    main()
