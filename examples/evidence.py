"""Shared by the scripts that measure methods on the quickstart's models over training seeds.

Models are trained once for each seed and kept. Factors and weights are chosen on the dev parts of
the tasks; this module scores merges on the test parts, by the paper's ratios.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TypeAlias

import torch
from domains import DOMAINS
from mergekit.merge import MergeOptions, run_merge
from quickstart import BASE_TRAINING, TUNING, train_models
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from dppa_mergekit.live.source_model import SourceModel
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.lm_eval_harness import Harness
from dppa_mergekit.scoring.ratios import Scores, domain_ratio
from dppa_mergekit.scoring.tasks import TasksFile

TASKS = Path(__file__).with_name("tasks.yml")

Result: TypeAlias = dict[str, object]
"""The measurements of one row, as plain data."""


def read_tasks(folder: Path, domains: Sequence[str] = tuple(DOMAINS)) -> TasksFile:
    """Return the tasks of some domains, with absolute model folders and without the guard."""
    tasks = TasksFile.read(TASKS)
    chosen = {
        name: tasks.domains[name].model_copy(update={"model": str(folder / name)})
        for name in domains
    }
    return tasks.model_copy(update={"domains": chosen, "guard": type(tasks.guard)()})


def make_recipe(
    folder: Path,
    method: str,
    parameters: Mapping[str, object],
    domains: Sequence[str] = tuple(DOMAINS),
) -> Recipe:
    """Return a merge of some domains' models below `folder`, with the same parameters for each."""
    content: dict[str, object] = {
        "merge_method": method,
        "base_model": str(folder / "base"),
        "models": [
            {"model": str(folder / name), "parameters": dict(parameters)} for name in domains
        ],
        "dtype": "bfloat16",
    }
    return Recipe(content)


class Test:
    """Scores merges on the test parts of the tasks."""

    def __init__(self, folder: Path) -> None:
        """Score the fine-tuned models below a folder, to which merges are compared."""
        self._tasks = read_tasks(folder)
        metrics = {
            task: metric
            for domain in self._tasks.domains.values()
            for task, metric in domain.test.items()
        }
        self._harness = Harness(self._tasks, metrics)
        self._folder = folder
        self._fine_tuned = {name: self._score(folder / name, [name]) for name in DOMAINS}

    def compute_ratios(
        self, recipe: Recipe, domains: Sequence[str], mask: int = 0
    ) -> dict[str, float]:
        """Merge a recipe by mergekit and return domain -> Domain-Ratio in percent.

        Args:
            recipe: A recipe of any method.
            domains: The domains to score.
            mask: Seed of random masks.
        """
        output = self._folder / "merged"
        options = MergeOptions(quiet=True, write_model_card=False, random_seed=mask)
        run_merge(recipe.configuration(), str(output), options)
        scores = self._score(output, domains)
        return {
            domain: domain_ratio(
                {task: scores[task] for task in self._tasks.domains[domain].test},
                {task: score.value for task, score in self._fine_tuned[domain].items()},
            )
            for domain in domains
        }

    def _score(self, model: Path, domains: Sequence[str]) -> Scores:
        items = {
            task: list(range(self._harness.item_count(task)))
            for domain in domains
            for task in self._tasks.domains[domain].test
        }
        return self._harness.score(*SourceModel(str(model)).load(), items)


def measure(
    folder: Path,
    seeds: Sequence[int],
    rows: Sequence[str],
    measure_row: Callable[[Path, Test, str], Result],
) -> None:
    """Train the models of every seed and measure every row, as far as that is not done.

    Args:
        folder: Where models and results are kept, below `seed_0`, ...
        seeds: Seeds of the training.
        rows: The names of the rows to measure.
        measure_row: Measures a row, given the folder of a seed, its test and the row's name.
    """
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    torch.set_num_threads(1)  # sums, and so the trained weights, depend on it
    for seed in seeds:
        models = folder / f"seed_{seed}"
        if not (models / list(DOMAINS)[-1]).exists():
            train_models(models, seed, BASE_TRAINING, TUNING)
        kept = models / "results.json"
        done = _read(kept)
        missing = [row for row in rows if row not in done]
        if missing:
            test = Test(models)
        for row in tqdm(missing, desc=f"seed {seed}"):
            result = measure_row(models, test, row)
            # Another process may have added rows meanwhile.
            done = {**_read(kept), row: result}
            kept.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")


def read_results(folder: Path) -> Iterator[tuple[str, Result]]:
    """Yield the name and the measurements of every row, for all seeds below a folder."""
    for path in sorted(folder.glob("seed_*/results.json")):
        yield from _read(path).items()


def format_cell(values: Sequence[float]) -> str:
    """Return the mean over seeds and its standard deviation."""
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def _read(path: Path) -> dict[str, Result]:
    results: dict[str, Result] = {}
    if path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
    return results
