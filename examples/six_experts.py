"""Merge six experts of the quickstart's base, one task each, in several ways.

    python examples/six_experts.py FOLDER --seed 0 --seed 1 --seed 2

Every method merges the same six deltas. Its weight, or for combinations by inputs its lambda, is
chosen on the dev parts of the tasks; the table on stdout shows the mean Task-Ratio on the test
parts. Finished rows are kept in FOLDER: the same command resumes, and several processes may share
FOLDER, each with its own seeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from statistics import mean

import click
import torch
from domains import TASKS
from evidence import format_cell
from items import Item, Task
from mergekit.merge_methods import merge_state_dicts
from quickstart import (
    BASE_TRAINING,
    GENERAL_REPLAY,
    OTHERS_REPLAY,
    TRUE_SHARE,
    TUNING,
    draw_for_base,
    load,
)
from scoring import GENERAL, Scorer, Scores
from tiny_llama import make_model, make_tokenizer
from tqdm import tqdm
from training import save, train
from transformers.utils.logging import disable_progress_bar

from dppa_mergekit.live.source_model import AS_STORED
from dppa_mergekit.observation.observe import Observing
from dppa_mergekit.observation.recipe_activations import RecipeActivations
from dppa_mergekit.observation.texts import Reading
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes import Recipe
from dppa_mergekit.report.markdown_tables import table

EXPERTS = [task for task in TASKS if task.domain != GENERAL]
DEV_ITEMS = 100
"""Items of each dev task to choose by."""

WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
"""Candidates for the weight that all models of a sum share."""

LAMBDAS = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
"""Candidates for lambda of a combination by inputs."""

ANSWER_TOKENS = 8
RANK = 128


@dataclass(frozen=True)
class Row:
    """A way to merge.

    Attributes:
        method: The merge method.
        density: Density of every delta; None if the method has none.
        prompts: Prompts that every expert is observed on; None for none.
        amplify: Whether pruned linears get factors, for a combination by inputs.
    """

    method: str
    density: float | None = None
    prompts: int | None = None
    amplify: str = "auto"

    @property
    def by_inputs(self) -> bool:
        """Whether the deltas are combined by inputs."""
        return self.method.endswith("_regmean")

    @property
    def label(self) -> str:
        """The name of the row."""
        if not self.by_inputs:
            return self.method
        observed = "data-free" if self.prompts is None else f"{self.prompts} prompts"
        plain = ", no factors" if self.amplify == "none" else ""
        return f"{self.method}, {observed}{plain}"

    @property
    def key(self) -> str:
        """A name that no other row has."""
        return f"{self.label}, density {self.density or 1:g}"


DENSITIES = (0.2, 0.1, 0.05)
ROWS = [
    Row("task_arithmetic"),
    *(
        Row(method, density)
        for method in ("ties", "dare_linear", "dare_dpa", "dppa")
        for density in DENSITIES
    ),
    *(
        Row(method, density, prompts)
        for method in ("dare_regmean", "dppa_regmean")
        for prompts in (None, 5, 25, 100)
        for density in DENSITIES
    ),
    *(Row("dppa_regmean", density, 25, "none") for density in DENSITIES),
]


def choose_draw(own: Task) -> Callable[[Random], Item]:
    """Return a function that draws an expert's items, mixed with items of the base's training."""
    general = [task for task in TASKS if task.domain == GENERAL]
    others = [task for task in EXPERTS if task is not own]

    def draw(random: Random) -> Item:
        share = random.random()
        if share < GENERAL_REPLAY:
            return random.choice(general).draw_for_training(random)
        if share < GENERAL_REPLAY + OTHERS_REPLAY:
            light = random.random() > TRUE_SHARE
            return random.choice(others).draw_for_training(random, light)
        return own.draw_for_training(random)

    return draw


def train_experts(folder: Path, seed: int) -> None:
    """Write the checkpoints base, addition, function, ... that are not there yet."""
    tokenizer = make_tokenizer()
    if not (folder / "base").exists():
        torch.manual_seed(seed)
        model = make_model(tokenizer)
        train(model, tokenizer, draw_for_base, BASE_TRAINING, seed, "training base")
        save(model, tokenizer, folder / "base")
    for number, task in enumerate(EXPERTS, start=1):
        if not (folder / task.name).exists():
            model = load(folder / "base", torch.float32)
            title = f"fine-tuning {task.name}"
            train(model, tokenizer, choose_draw(task), TUNING, seed + number, title)
            save(model, tokenizer, folder / task.name)


def observe(folder: Path, number: int) -> dict[str, str]:
    """Observe every expert on prompts of its training; return expert -> its file."""
    output = folder / f"observed_{number}.yml"
    names = [task.name for task in EXPERTS]
    recipe = Recipe(
        {
            "merge_method": "dppa_regmean",
            "base_model": str(folder / "base"),
            "models": [{"model": str(folder / name)} for name in names],
        }
    )
    prompts = {
        task.name: [
            Prompt(task.draw_for_training(random).prompt)
            for random in [Random(f"observed: {task.name}")]
            for _ in range(number)
        ]
        for task in EXPERTS
    }
    observing = Observing(RANK, Reading(ANSWER_TOKENS, batch_size=25))
    found = RecipeActivations(recipe, prompts, output, observing, AS_STORED).run()
    return {Path(model).name: file.path for model, file in found.files.items()}


class Bench:
    """Merges the experts of one seed in memory, and scores the merges."""

    def __init__(self, folder: Path) -> None:
        """Load the experts below a folder."""
        self._folder = folder
        self._tokenizer = make_tokenizer()
        self._weights = {
            name: load(folder / name, torch.bfloat16).state_dict()
            for name in ["base", *(task.name for task in EXPERTS)]
        }
        self._model = load(folder / "base", torch.float32)
        self._observed: dict[int, dict[str, str]] = {}

    @cached_property
    def _dev(self) -> Scorer:
        return Scorer.load("dev", limit=DEV_ITEMS)

    @cached_property
    def _test(self) -> Scorer:
        return Scorer.load("test")

    def measure(self, row: Row) -> dict[str, object]:
        """Choose a row's weight or lambda on dev; return it, and the Task-Ratios on test."""
        values = LAMBDAS if row.by_inputs else WEIGHTS
        best = max(values, key=lambda value: mean(self._ratios(row, value, self._dev).values()))
        return {"chosen": best, "ratios": self._ratios(row, best, self._test)}

    def _ratios(self, row: Row, value: float, scorer: Scorer) -> dict[str, float]:
        """Return task -> score of the merge over the expert's own, in percent."""
        merged = self._score(self._merge(row, value), scorer)
        own = self._scores_of_experts(scorer)
        return {name: 100 * merged[name] / own[name] for name in own}

    def _merge(self, row: Row, value: float) -> dict[str, torch.Tensor]:
        """Merge all experts with one weight, or with one lambda."""
        names = [task.name for task in EXPERTS]
        parameters: dict[str, object] = {}
        if row.density is not None:
            parameters["density"] = dict.fromkeys(names, row.density)
        if row.by_inputs:
            parameters["lambda"] = value
            parameters["amplify"] = row.amplify
            parameters["weight"] = dict.fromkeys(names, 1.0)
            if row.prompts is not None:
                if row.prompts not in self._observed:
                    self._observed[row.prompts] = observe(self._folder, row.prompts)
                parameters["activations"] = self._observed[row.prompts]
        else:
            parameters["weight"] = dict.fromkeys(names, value)
        if row.method == "ties":
            parameters["normalize"] = False  # a common weight would change nothing
        torch.manual_seed(0)
        merged: dict[str, torch.Tensor] = merge_state_dicts(
            self._weights, row.method, parameters=parameters, base="base"
        )
        return merged

    def _scores_of_experts(self, scorer: Scorer) -> Scores:
        """Return task -> the score of its own expert."""
        if scorer.part not in self._own:
            self._own[scorer.part] = {
                task.name: self._score(self._weights[task.name], scorer)[task.name]
                for task in EXPERTS
            }
        return self._own[scorer.part]

    @cached_property
    def _own(self) -> dict[str, Scores]:
        return {}

    def _score(self, weights: dict[str, torch.Tensor], scorer: Scorer) -> Scores:
        self._model.load_state_dict(weights)
        return scorer.score(self._model, self._tokenizer)


def read_results(path: Path) -> dict[str, dict[str, object]]:
    """Return row -> its measurements, of one seed."""
    results: dict[str, dict[str, object]] = {}
    if path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
    return results


def print_table(folder: Path) -> None:
    """Print the mean Task-Ratio of every method, means and deviations over seeds."""
    of_seeds = [read_results(path) for path in sorted(folder.glob("seed_*/six_experts.json"))]
    labels = list(dict.fromkeys(row.label for row in ROWS))
    lines = []
    for label in labels:
        cells = []
        for density in (None, *DENSITIES):
            keys = [row.key for row in ROWS if (row.label, row.density) == (label, density)]
            ratios = [
                mean(results[key]["ratios"].values())  # type: ignore[attr-defined]
                for results in of_seeds
                for key in keys
                if key in results
            ]
            cells.append(format_cell(ratios) if ratios else "")
        lines.append([label, *cells])
    head = ["merge", "all deltas", *(f"density {density:g}" for density in DENSITIES)]
    click.echo(table(head, lines), nl=False)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", "seeds", multiple=True, type=int, default=[0, 1, 2], show_default=True)
def main(folder: Path, seeds: tuple[int, ...]) -> None:
    """Train six experts of one base below FOLDER, merge them, and print mean Task-Ratios."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    torch.set_num_threads(1)  # sums, and so the trained weights, depend on the number
    for seed in seeds:
        models = folder / f"seed_{seed}"
        train_experts(models, seed)
        kept = models / "six_experts.json"
        missing = [row for row in ROWS if row.key not in read_results(kept)]
        bench = Bench(models)
        for row in tqdm(missing, desc=f"seed {seed}"):
            results = {**read_results(kept), row.key: bench.measure(row)}
            kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_table(folder)


if __name__ == "__main__":
    main()
