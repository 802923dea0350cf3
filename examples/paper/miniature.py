"""The paper's tables and figures on tiny models, over several training seeds.

    python examples/paper/miniature.py FOLDER

Trains the quickstart's base for every seed, and fine-tunes it in three settings: the quickstart's
three models, the same less hard (the *miniature*), and six experts of one task each, also merged
two by two. Each setting is measured by the public commands. FOLDER then holds `results.json`,
`tables/` and `figures/`. If it is killed, run the same command again to resume.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from random import Random
from types import MappingProxyType

import click
import yaml
from transformers.utils.logging import disable_progress_bar

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules of the other examples

import quickstart
import six_experts
from domains import DOMAINS, TASKS, TASKS_FOLDER
from items import PARTS, Item, Task, draw_prompts
from measurements import Group, make_slug
from plan import Domains, Merging, Plain, Plan, Subject, combine
from report import write_report
from running import measure, run_trainings
from training import Training
from ways_to_merge import COMPARED, MERGINGS, OTHER_GRANULARITIES

METRIC = "exact_match,none"
PROMPTS = 32
"""Prompts on which the inputs of every model are observed."""

THREE, TWO = tuple(DOMAINS), ("math", "finance")
SIX = tuple(task.name for task in six_experts.EXPERTS)

PLAN = Plan(
    rates=(10, 20, 30, 40, 50, 60, 70, 80, 90),
    beyond=(95, 98),
    searched=(90, 80),
    mergings={THREE: (*MERGINGS, *OTHER_GRANULARITIES), TWO: MERGINGS},
    factors=(0.6, 1.4, 1.8, 2.2, 2.6, 3.0),
    candidates=30,
    weighings=20,
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


@dataclass(frozen=True)
class Setting:
    """Models that are fine-tuned alike from one base.

    Attributes:
        title: Their name in the tables.
        tuning: The training of each.
        tasks: Domain -> its tasks.
        choose_draw: Returns the function that draws the training items of a domain.
        plan: What is measured of them.
    """

    title: str
    tuning: Training
    tasks: Mapping[str, Sequence[Task]]
    choose_draw: Callable[[str], Callable[[Random], Item]]
    plan: Plan

    @property
    def slug(self) -> str:
        """The title as the name of a folder."""
        return make_slug(self.title)


def _choose_draw_of_expert(name: str) -> Callable[[Random], Item]:
    (own,) = (task for task in six_experts.EXPERTS if task.name == name)
    return six_experts.choose_draw(own)


def _make_plan(
    domains: Domains, also: Mapping[Domains, tuple[Merging, ...]] = MappingProxyType({})
) -> Plan:
    """Return a plan of fewer pruning rates, and of all mergings of one set of domains."""
    mergings = {domains: (*MERGINGS, *OTHER_GRANULARITIES), **also}
    return replace(PLAN, rates=(10, 80, 90), factors=(), mergings=mergings)


BY_DOMAIN = {domain: [task for task in TASKS if task.domain == domain] for domain in DOMAINS}
BY_EXPERT = {task.name: [task] for task in six_experts.EXPERTS}

MINIATURE = Setting(
    "Miniature",
    # Moves the weights by a fifth of their own deviation; the quickstart moves them by a third.
    replace(quickstart.TUNING, learning_rate=2e-3),
    BY_DOMAIN,
    quickstart.choose_draw,
    PLAN,
)
SETTINGS: tuple[Setting, ...] = (
    MINIATURE,
    Setting(
        "Quickstart",
        quickstart.TUNING,
        BY_DOMAIN,
        quickstart.choose_draw,
        _make_plan(THREE),
    ),
    Setting(
        "Six tiny experts",
        quickstart.TUNING,
        BY_EXPERT,
        _choose_draw_of_expert,
        _make_plan(SIX, also=dict.fromkeys(combinations(SIX, 2), COMPARED)),
    ),
)
# Addition is learned late.
SMOKE = replace(
    MINIATURE,
    tuning=replace(quickstart.TUNING, steps=150),
    tasks={
        domain: [task for task in tasks if task.name != "addition"]
        for domain, tasks in BY_DOMAIN.items()
    },
    plan=SMOKE_PLAN,
)


def train_base(folder: Path, seed: int, training: Training) -> None:
    """Train the base of a seed, unless it exists."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    if not folder.exists():
        quickstart.train_base(folder, seed, training)


def fine_tune(folder: Path, seed: int, setting: str, tuning: Training) -> None:
    """Train the models of a setting in the folder of a seed, unless they exist."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    (found,) = (each for each in SETTINGS if each.title == setting)
    for number, domain in enumerate(found.tasks, start=1):
        output = folder / found.slug / domain
        if not output.exists():
            draw = found.choose_draw(domain)
            quickstart.fine_tune(folder / "base", output, draw, tuning, seed + number)


def make_tasks(tasks: Mapping[str, Sequence[Task]], models: str) -> Plain:
    """Return the content of the quickstart's tasks file, for the models of some domains.

    Args:
        tasks: Domain -> its tasks.
        models: The folder of the models, relative to that of a subject.
    """
    content: Plain = yaml.safe_load(TASKS_FOLDER.with_suffix(".yml").read_text(encoding="utf-8"))
    domains = {
        domain: {
            "model": f"{models}/{domain}",
            **{part: {f"{task.name}_{part}": METRIC for task in own} for part in PARTS},
        }
        for domain, own in tasks.items()
    }
    return {**content, "include_path": str(TASKS_FOLDER), "domains": domains}


def make_subject(folder: Path, seed: int, setting: Setting, base: Training) -> Subject:
    """Return the models of a setting and a seed as a subject."""
    name, models = f"{setting.slug}_seed_{seed}", f"../models/seed_{seed}"
    return Subject(
        name=name,
        folder=folder / name,
        base=f"{models}/base",
        tasks=make_tasks(setting.tasks, f"{models}/{setting.slug}"),
        prompts={
            domain: draw_prompts(own, own[0].domain, PROMPTS)
            for domain, own in setting.tasks.items()
        },
        made={"seed": seed, "base": asdict(base), "tuning": asdict(setting.tuning)},
    )


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
    base, settings = quickstart.BASE_TRAINING, SETTINGS
    if smoke:
        base, settings = replace(base, steps=250), (SMOKE,)
        seeds = seeds[:1]
    folder, seeds = folder.resolve(), tuple(dict.fromkeys(seeds))
    models = {seed: folder / "models" / f"seed_{seed}" for seed in seeds}
    run_trainings([partial(train_base, models[seed] / "base", seed, base) for seed in seeds], jobs)
    groups = []
    for setting in settings:
        subjects = [make_subject(folder, seed, setting, base) for seed in seeds]
        trainings = [
            partial(fine_tune, models[seed], seed, setting.title, setting.tuning) for seed in seeds
        ]
        groups.append(Group(setting.title, measure(subjects, trainings, setting.plan, jobs)))
        write_report(folder, groups)


if __name__ == "__main__":
    main()
