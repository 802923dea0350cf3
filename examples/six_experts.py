"""Merge six experts of the quickstart's base, one task each, in several ways.

    python examples/six_experts.py FOLDER --seed 0 --seed 1 --seed 2

Every method merges the same six deltas. Its weight, or for combinations by inputs its lambda, is
chosen on the dev parts of the tasks; the table on stdout shows the mean Task-Ratio on the test
parts. Finished rows are kept in FOLDER: the same command resumes, and several processes may share
FOLDER, each with its own seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from statistics import mean

import click
import torch
from contest import Contest, Part, Result, Row, Weights, labelled, measure_missing, read_results
from domains import TASKS
from evidence import format_cell
from items import Item, Task
from quickstart import (
    BASE_TRAINING,
    GENERAL_REPLAY,
    OTHERS_REPLAY,
    TRUE_SHARE,
    TUNING,
    fine_tune,
    load,
    train_base,
)
from scoring import GENERAL, Scorer, Scores
from tiny_llama import make_tokenizer
from transformers.utils.logging import disable_progress_bar

from dppa_mergekit.live.placement import AS_STORED
from dppa_mergekit.observation.observe import Observing
from dppa_mergekit.observation.recipe_activations import RecipeActivations
from dppa_mergekit.observation.texts import Reading
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes.recipe import Recipe
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
        for density in DENSITIES[:2]
    ),
    *(Row(method, DENSITIES[2], 25) for method in ("dare_regmean", "dppa_regmean")),
    *(Row("dppa_regmean", density, 25, "none") for density in DENSITIES[:2]),
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
    base = folder / "base"
    if not base.exists():
        train_base(base, seed, BASE_TRAINING)
    for number, task in enumerate(EXPERTS, start=1):
        output = folder / task.name
        if not output.exists():
            fine_tune(base, output, choose_draw(task), TUNING, seed + number)


def draw_prompts(number: int) -> dict[str, list[Prompt]]:
    """Return expert -> prompts of its training, which it answers itself."""
    prompts = {}
    for task in EXPERTS:
        random = Random(f"observed: {task.name}")
        prompts[task.name] = [Prompt(task.draw_for_training(random).prompt) for _ in range(number)]
    return prompts


def observe(
    output: Path, prompts: Mapping[str, Sequence[Prompt]], answer_tokens: int
) -> dict[str, str]:
    """Observe the experts beside a recipe's file on prompts; return expert -> its file."""
    recipe = Recipe(
        {
            "merge_method": "dppa_regmean",
            "base_model": str(output.with_name("base")),
            "models": [{"model": str(output.with_name(name))} for name in prompts],
        }
    )
    observing = Observing(RANK, Reading(answer_tokens, batch_size=25))
    found = RecipeActivations(recipe, prompts, output, observing, AS_STORED).run()
    return {Path(model).name: file.path for model, file in found.files.items()}


def make_contest(folder: Path) -> Contest:
    """Return the contest of the experts below a folder."""
    tokenizer = make_tokenizer()
    models = {
        name: load(folder / name, torch.bfloat16).state_dict()
        for name in ["base", *(task.name for task in EXPERTS)]
    }
    model = load(folder / "base", torch.float32)

    @cache
    def scorer(part: Part) -> Scorer:
        return Scorer.load(part, DEV_ITEMS if part == "dev" else None)

    def score(weights: Weights, part: Part) -> Scores:
        model.load_state_dict(weights)
        return scorer(part).score(model, tokenizer)

    @cache
    def scores_of_experts(part: Part) -> Scores:
        return {task.name: score(models[task.name], part)[task.name] for task in EXPERTS}

    def judge(weights: Weights, part: Part) -> tuple[float, Result]:
        """Return the mean Task-Ratio, and task -> score over the expert's own, in percent."""
        merged, own = score(weights, part), scores_of_experts(part)
        ratios = {name: 100 * merged[name] / own[name] for name in own}
        return mean(ratios.values()), {"ratios": ratios}

    @cache
    def observe_number(number: int) -> dict[str, str]:
        return observe(folder / f"observed_{number}.yml", draw_prompts(number), ANSWER_TOKENS)

    return Contest(models, observe_number, judge, WEIGHTS, LAMBDAS)


def print_table(folder: Path) -> None:
    """Print the mean Task-Ratio of every method, means and deviations over seeds."""
    of_seeds = [read_results(path) for path in sorted(folder.glob("seed_*/six_experts.json"))]
    lines = []
    for label, keys in labelled(ROWS, DENSITIES):
        cells = []
        for key in keys:
            ratios = [
                mean(results[key]["ratios"].values())  # type: ignore[attr-defined]
                for results in of_seeds
                if key in results
            ]
            cells.append(format_cell(ratios) if ratios else "")
        lines.append([label, *cells])
    head = ["merge", "all deltas", *(f"density {density:g}" for density in DENSITIES)]
    click.echo(table(head, lines), nl=False)


def make_command(
    text: str, measure: Callable[[Path], None], print_table: Callable[[Path], None]
) -> click.Command:
    """Return a command that trains the experts of several seeds, measures each, and prints a table.

    Args:
        text: The help of the command.
        measure: Measures the experts in the folder of one seed.
        print_table: Prints the measurements below the folder of all seeds.
    """

    @click.command(help=text)
    @click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
    @click.option("--seed", "seeds", multiple=True, type=int, default=[0, 1, 2], show_default=True)
    def command(folder: Path, seeds: tuple[int, ...]) -> None:
        disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
        torch.set_num_threads(1)  # sums, and so the trained weights, depend on the number
        for seed in seeds:
            of_seed = folder / f"seed_{seed}"
            train_experts(of_seed, seed)
            measure(of_seed)
        print_table(folder)

    return command


def measure_merges(folder: Path) -> None:
    """Measure the merges that the folder of a seed does not have yet."""
    measure_missing(make_contest(folder), ROWS, folder / "six_experts.json", folder.name)


if __name__ == "__main__":
    make_command(
        "Train six experts of one base below FOLDER, merge them, and print mean Task-Ratios.",
        measure_merges,
        print_table,
    )()
