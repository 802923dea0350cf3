"""The paper's tables and figures on tiny models, over several training seeds.

    python examples/paper/miniature.py FOLDER

Trains the quickstart's base and its three fine-tuned models for every seed, less hard than the
quickstart does, and repeats the paper's measurements by the public commands. FOLDER then holds
`results.json`, `tables/` and `figures/`. If it is killed, run the same command again to resume.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import click
import yaml
from transformers.utils.logging import disable_progress_bar

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the quickstart's modules

import quickstart
from domains import DOMAINS, TASKS, TASKS_FOLDER
from items import draw_prompts
from measurements import Group
from plan import Merging, Plain, Plan, Subject, combine
from report import write_report
from running import measure
from training import Training

TUNING = Training(steps=300, batch_size=64, learning_rate=2e-3)
"""Moves the weights by a fifth of their own deviation; the quickstart moves them by a third."""

THREE, TWO = ("math", "finance", "law"), ("math", "finance")

MERGINGS: tuple[Merging, ...] = (
    *combine(["task_arithmetic"], [0], ["shared", "search"]),
    *combine(["dp"], [0], ["block"]),
    *combine(["ties", "dare_linear", "dare_ties", "della"], [90, 80], ["search"]),
    *combine(["dare_dpa", "dppa"], [90, 80], ["search", "block"]),
    *combine(["dare_regmean", "dppa_regmean"], [90, 80], ["given"]),
)

PLAN = Plan(
    rates=(10, 20, 30, 40, 50, 60, 70, 80, 90),
    beyond=(95, 98),
    searched=(90, 80),
    mergings={THREE: MERGINGS, TWO: MERGINGS},
    factors=(0.6, 1.4, 1.8, 2.2, 2.6, 3.0),
    candidates=30,
    weighings=16,
    steps=100,
    states=6,
    learning_rate=1e-2,
    dev_items=100,
)
SMOKE_PLAN = replace(
    PLAN,
    rates=(10, 90),
    beyond=(98,),
    searched=(90,),
    mergings={
        TWO: (
            *combine(["dppa"], [90], ["search", "block"]),
            *combine(["dppa_regmean"], [90], ["given"]),
        )
    },
    factors=(2.0,),
    candidates=2,
    weighings=2,
    steps=2,
    states=2,
    dev_items=50,
    test_items=20,
)

PROMPTS = 32
"""Prompts on which the inputs of every model are observed."""


def train_models(folder: Path, seed: int, base: Training, tuning: Training) -> None:
    """Train the models of one seed, unless they exist."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    if not (folder / DOMAINS[-1]).exists():
        quickstart.train_models(folder, seed, base, tuning)


def read_tasks(smoke: bool) -> Plain:
    """Return the quickstart's tasks file, with its items' folder as an absolute path.

    A smoke test leaves out addition, which models learn late.
    """
    path = TASKS_FOLDER.with_suffix(".yml")
    tasks = {
        **yaml.safe_load(path.read_text(encoding="utf-8")),
        "include_path": str(TASKS_FOLDER),
    }
    if smoke:
        math = tasks["domains"]["math"]
        del math["dev"]["addition_dev"], math["test"]["addition_test"]
    return tasks


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", "seeds", multiple=True, type=int, default=[0, 1, 2], show_default=True)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Trainings, and then parts of experiments, at a time; each takes a core.",
)
@click.option("--smoke", is_flag=True, help="Train briefly on few items; the numbers mean nothing.")
def main(folder: Path, seeds: tuple[int, ...], jobs: int, smoke: bool) -> None:
    """Train tiny models below FOLDER and write the paper's tables and figures for them."""
    base, tuning, plan = quickstart.BASE_TRAINING, TUNING, PLAN
    if smoke:
        base, tuning = replace(base, steps=250), replace(quickstart.TUNING, steps=150)
        plan = SMOKE_PLAN
        seeds = seeds[:1]
    seeds = tuple(dict.fromkeys(seeds))
    folder = folder.resolve()
    subjects = [
        Subject(
            name=f"seed_{seed}",
            folder=folder / f"seed_{seed}",
            base="./base",
            tasks=read_tasks(smoke),
            prompts={domain: draw_prompts(TASKS, domain, PROMPTS) for domain in DOMAINS},
            made={"seed": seed, "base": asdict(base), "tuning": asdict(tuning)},
        )
        for seed in seeds
    ]
    trainings = [
        partial(train_models, folder / f"seed_{seed}", seed, base, tuning) for seed in seeds
    ]
    results = measure(subjects, trainings, plan, jobs)
    write_report(folder, [Group("Miniature", results)])


if __name__ == "__main__":
    main()
