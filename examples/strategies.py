"""What each search strategy finds on the quickstart's models: over several training seeds.

    python examples/strategies.py FOLDER --seed 0 --seed 1 --seed 2

Every model is pruned alone, by 80 and by 90 %. Factors are chosen on the dev parts of the tasks;
the table on stdout shows the Domain-Ratios on the test parts. What is finished is kept in FOLDER:
the same command goes on, and several processes may share it, each with seeds of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import click
import torch
from domains import DOMAINS
from mergekit.merge import MergeOptions, run_merge
from quickstart import train_models
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from dppa_mergekit.harness import Harness
from dppa_mergekit.recipes import Recipe
from dppa_mergekit.resident import load_model
from dppa_mergekit.scores import Scores, domain_ratio
from dppa_mergekit.search import Tuned
from dppa_mergekit.tasks import TasksFile
from dppa_mergekit.tuning import Search, default_options
from dppa_mergekit.unmerged import Placement

TASKS = Path(__file__).with_name("tasks.yml")
DENSITIES = (0.2, 0.1)
DARE_MASKS = 3
"""Random masks of DARE, whose ratios are averaged."""


@dataclass(frozen=True)
class Variant:
    """One row of the table.

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
    Variant("DARE", "dare_linear"),
    Variant("dare_dpa, joint", "dare_dpa", "joint"),
    Variant("DP: dppa, factors 1", "dppa"),
    Variant("dppa, paper", "dppa", "paper"),
    Variant("dppa, joint", "dppa", "joint"),
    Variant("dppa, distill", "dppa", "distill"),
    Variant("dppa, distill for each block", "dppa", "distill", per_block=True),
)


def recipe_of(folder: Path, variant: Variant, density: float) -> Recipe:
    """The three models with one density."""
    content: dict[str, object] = {
        "merge_method": variant.method,
        "base_model": str(folder / "base"),
        "models": [
            {"model": str(folder / name), "parameters": {"weight": 1.0, "density": density}}
            for name in DOMAINS
        ],
        "dtype": "bfloat16",
    }
    return Recipe(content)


def tasks_of(folder: Path) -> TasksFile:
    """The tasks, with the models' folders in full."""
    tasks = TasksFile.read(TASKS)
    domains = {
        name: domain.model_copy(update={"model": str(folder / name)})
        for name, domain in tasks.domains.items()
    }
    return tasks.model_copy(update={"domains": domains})


class Test:
    """Test scores of checkpoints."""

    def __init__(self, folder: Path) -> None:
        """Of the models below a folder."""
        self._tasks = tasks_of(folder)
        metrics = {
            task: metric
            for domain in self._tasks.domains.values()
            for task, metric in domain.test.items()
        }
        self._harness = Harness(self._tasks, metrics)
        self._folder = folder
        self._dense = {name: self._scores(folder / name, name) for name in DOMAINS}

    def ratio(self, recipe: Recipe, domain: str, mask: int = 0) -> float:
        """The Domain-Ratio of one model alone on the base."""
        output = self._folder / "alone"
        options = MergeOptions(quiet=True, write_model_card=False, random_seed=mask)
        alone = recipe.alone(str(self._folder / domain))
        run_merge(alone.configuration(), str(output), options)
        return domain_ratio(self._scores(output, domain), self._dense_values(domain))

    def _dense_values(self, domain: str) -> dict[str, float]:
        return {task: score.value for task, score in self._dense[domain].items()}

    def _scores(self, model: Path, domain: str) -> Scores:
        items = {
            task: list(range(self._harness.items(task)))
            for task in self._tasks.domains[domain].test
        }
        return self._harness.score(*load_model(model, "cpu", None), items)


def measured(
    folder: Path, test: Test, variant: Variant, density: float, evaluations: int
) -> dict[str, object]:
    """The test Domain-Ratios of one variant, and what its search took."""
    recipe = recipe_of(folder, variant, density)
    found: list[Tuned] = []
    if variant.strategy is not None:
        name = f"{variant.method}_{variant.strategy}{'_blocks' * variant.per_block}_{density:g}.yml"
        options = replace(
            default_options(variant.method),
            strategy=variant.strategy,
            max_evaluations=evaluations,
            per_block=variant.per_block,
        )
        found = Search(recipe, tasks_of(folder), folder / name, options, Placement()).run()
        recipe = Recipe.read(folder / name)
    masks = range(DARE_MASKS if variant.method == "dare_linear" else 1)
    return {
        "ratios": {
            domain: mean(test.ratio(recipe, domain, mask) for mask in masks) for domain in DOMAINS
        },
        "evaluations": sum(each.evaluations for each in found) / len(DOMAINS),
        "seconds": sum(each.seconds for each in found) / len(DOMAINS),
    }


def results(folder: Path) -> Iterator[tuple[str, float, Mapping]]:
    """Label, density and what was measured, of every file of results below a folder."""
    for path in sorted(folder.glob("seed_*/results.json")):
        for key, value in json.loads(path.read_text(encoding="utf-8")).items():
            label, density = key.rsplit(" at ", 1)
            yield label, float(density), value


def print_table(folder: Path) -> None:
    """Means over the seeds, and their standard deviations."""
    every = list(results(folder))

    def cell(values: list[float], digits: int = 1) -> str:
        spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{mean(values):.{digits}f}{spread}"

    print("| pruned by | factors | " + " | ".join(DOMAINS) + " | candidates | seconds |")
    print("|---" * (len(DOMAINS) + 4) + "|")
    for density in DENSITIES:
        for variant in VARIANTS:
            own = [each for label, at, each in every if (label, at) == (variant.label, density)]
            if not own:
                continue
            cells = [cell([each["ratios"][domain] for each in own]) for domain in DOMAINS]
            spent = [f"{mean(each[key] for each in own):.0f}" for key in ("evaluations", "seconds")]
            if variant.strategy is None:
                spent = ["", ""]
            row = [f"{100 - 100 * density:.0f} %", variant.label, *cells, *spent]
            print("| " + " | ".join(row) + " |")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", "seeds", multiple=True, type=int, default=[0, 1, 2], show_default=True)
@click.option("--max-evaluations", default=40, show_default=True, help="For each domain.")
def main(folder: Path, seeds: tuple[int, ...], max_evaluations: int) -> None:
    """Train models below FOLDER, search factors by every strategy, and print the test scores."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    torch.set_num_threads(1)  # sums, and so the trained weights, depend on the number
    for seed in seeds:
        models = folder / f"seed_{seed}"
        if not (models / list(DOMAINS)[-1]).exists():
            train_models(models, seed)
        kept = models / "results.json"
        done = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        wanted = {
            f"{variant.label} at {density:g}": (variant, density)
            for density in DENSITIES
            for variant in VARIANTS
        }
        missing = [key for key in wanted if key not in done]
        if missing:
            test = Test(models)
        for key in tqdm(missing, desc=f"seed {seed}"):
            done[key] = measured(models, test, *wanted[key], max_evaluations)
            kept.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    print_table(folder)


if __name__ == "__main__":
    main()
