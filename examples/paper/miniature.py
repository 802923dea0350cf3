"""The paper's tables and figures on tiny models, over several training seeds.

    python examples/paper/miniature.py FOLDER

Trains the quickstart's base and its three fine-tuned models for every seed, not as hard as the
quickstart does, and measures what the paper measured, by the public commands. FOLDER then holds
`results.json`, `tables.md` and `figures/`; killed, the same command goes on.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import click
import yaml
from transformers.utils.logging import disable_progress_bar

sys.path.append(str(Path(__file__).resolve().parents[1]))  # of the quickstart's modules

import quickstart
from domains import DOMAINS, TASKS_FOLDER
from experiment import Plain, Plan, Subject
from report import Group, write_report
from running import measure
from training import Training

TUNING = Training(steps=300, batch_size=64, learning_rate=2e-3)
"""Moves the weights by a fifth of their own deviation; the quickstart's by a third."""

PLAN = Plan(
    rates=(10, 20, 30, 40, 50, 60, 70, 80, 90),
    beyond=(95, 98),
    searched=(90, 80),
    sets=(("math", "finance", "law"), ("math", "finance")),
    ways=("adamerge", "search"),
    others=(("task_arithmetic", "shared"), ("dare_linear", "search")),
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
    sets=(("math", "finance"),),
    ways=("adamerge",),
    factors=(2.0,),
    candidates=2,
    weighings=2,
    steps=2,
    states=2,
    dev_items=50,
    test_items=20,
)


def train_models(folder: Path, seed: int, base: Training, tuning: Training) -> None:
    """Train the models of one seed, unless they are there."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    if not (folder / DOMAINS[-1]).exists():
        quickstart.train_models(folder, seed, base, tuning)


def tasks(smoke: bool) -> Plain:
    """The quickstart's tasks file, wherever it is read from; without addition for a smoke test.

    Addition is learnt late.
    """
    path = TASKS_FOLDER.with_suffix(".yml")
    found = {
        **yaml.safe_load(path.read_text(encoding="utf-8")),
        "include_path": str(TASKS_FOLDER),
    }
    if smoke:
        math = found["domains"]["math"]
        del math["dev"]["addition_dev"], math["test"]["addition_test"]
    return found


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", "seeds", multiple=True, type=int, default=[0, 1, 2], show_default=True)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Seeds, then parts at a time, on a core each.",
)
@click.option("--smoke", is_flag=True, help="Hardly any training, few items: numbers mean nothing.")
def main(folder: Path, seeds: tuple[int, ...], jobs: int, smoke: bool) -> None:
    """Train tiny models below FOLDER and write the paper's tables and figures of them."""
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
            tasks=tasks(smoke),
            made={"seed": seed, "base": asdict(base), "tuning": asdict(tuning)},
        )
        for seed in seeds
    ]
    trainings = [
        partial(train_models, folder / f"seed_{seed}", seed, base, tuning) for seed in seeds
    ]
    found = measure(subjects, trainings, plan, jobs)
    write_report(folder, [Group("Miniature", found)])


if __name__ == "__main__":
    main()
