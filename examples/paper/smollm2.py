"""The paper's tables on a real pretrained Llama: SmolLM2-135M-Instruct.

    pip install -e '.[paper]'
    python examples/paper/smollm2_experts.py MODELS
    python examples/paper/smollm2.py FOLDER --models MODELS

Repeats the paper's measurements of the experts in MODELS by the public commands. FOLDER then holds
`results.json`, `tables/`, `samples.md` and `figures/`. It takes hours without a GPU. If it is
killed, run the same command again to resume.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules of the other examples

from domains import TASKS_FOLDER
from items import PARTS, Item, draw_prompts, write_held_out
from measurements import Group
from plan import Plain, Plan, Subject
from problems import DOMAINS, GUARD, TASKS
from report import write_report
from running import measure
from smollm2_experts import SETTINGS, Expert, read_record
from subject_folder import join
from ways_to_merge import MERGINGS, OTHER_GRANULARITIES

THREE, TWO = ("math", "finance", "law"), ("math", "finance")

PLAN = Plan(
    rates=(10, 80, 90),
    beyond=(95, 98),
    searched=(90, 80),
    mergings={
        THREE: (*MERGINGS, *OTHER_GRANULARITIES),
        TWO: tuple(merging for merging in MERGINGS if merging.rate != 90),
    },
    factors=(1.5, 2.0, 2.5, 3.0),
    candidates=12,
    weighings=12,
    steps=24,
    states=3,
    learning_rate=2e-2,
    dev_items=36,
    test_items=100,
)

PLANS = {"simple": replace(PLAN, mergings={THREE: MERGINGS}), "hard": PLAN}
"""Setting -> what is measured. Granularities and two domains, which take as long as all else, are
measured where merges lose most."""

PROMPTS = 32
"""Prompts on which the inputs of every model are observed."""

SAMPLES = 3
"""Test items of each task whose answers are written down."""

SAMPLED = {
    "task arithmetic by AdaMerging": "unpruned/dp_0_block",
    "DPPA at 80 % by AdaMerging": "dppa/dppa_80_block",
    "DPPA at 80 % by inputs": "inputs/dppa_regmean_80_given",
    "DPPA at 80 % by inputs, by AdaMerging": "inputs/dppa_regmean_80_block",
}
"""Name of a merge of three domains whose answers are written down -> its recipe."""


def write_tasks(folder: Path) -> None:
    """Write the lm-eval tasks and their items to a folder."""
    shutil.copytree(Path(__file__).with_name("tasks"), folder, dirs_exist_ok=True)
    shutil.copy(TASKS_FOLDER / "loader.py", folder)
    write_held_out([*TASKS, GUARD], folder)


def make_tasks(models: Mapping[str, str], device: str) -> Plain:
    """Return the content of the tasks files, which lie in `tasks` of a subject's folder.

    Args:
        models: Domain -> path of its model.
        device: Where models run: cpu, cuda, ...
    """

    def list_metrics(domain: str, part: str) -> dict[str, str]:
        return {
            f"{task.name}_{part}": "exact_match,answer" for task in TASKS if task.domain == domain
        }

    return {
        "include_path": "../../tasks",
        "batch_size": 128 if device == "cpu" else 256,
        "domains": {
            domain: {
                "model": model,
                **{part: list_metrics(domain, part) for part in PARTS},
            }
            for domain, model in models.items()
        },
        "guard": {part: {f"{GUARD.name}_{part}": "acc,none"} for part in PARTS},
    }


def make_subject(folder: Path, models: Path, seed: int, setting: str, device: str) -> Subject:
    """Return the experts of a seed and a setting as a subject.

    Raises:
        click.ClickException: One of them is not there.
    """
    here = folder / f"{setting}_seed_{seed}"
    experts = {domain: Expert(seed, setting, domain) for domain in DOMAINS}

    def locate(path: Path) -> str:
        return Path(os.path.relpath(models / path, here)).as_posix()

    return Subject(
        name=here.name,
        folder=here,
        base=locate(Path("base")),
        tasks=make_tasks(
            {domain: locate(expert.path) for domain, expert in experts.items()}, device
        ),
        prompts={domain: draw_prompts(TASKS, domain, PROMPTS) for domain in DOMAINS},
        made={domain: read_record(models, expert) for domain, expert in experts.items()},
        device=device,
    )


def write_samples(folder: Path, subjects: Mapping[str, Mapping[str, Path]], device: str) -> None:
    """Write the models' answers to a few test items, for people to read.

    Args:
        folder: The folder of `samples.md`.
        subjects: Setting -> name of a model -> its folder.
        device: Where models run: cpu, cuda, ...
    """
    items = [item for task in TASKS for item in task.held_out["test"][:SAMPLES]]
    lines = ["# Answers to test items\n"]
    answers: dict[str, dict[str, list[str]]] = {
        setting: {name: _answer(path, items, device) for name, path in models.items()}
        for setting, models in subjects.items()
    }
    for number, item in enumerate(items):
        lines.append(f"    {item.prompt}\n".replace("\n", "\n    ").rstrip(" "))
        lines.append(f"- right: `{item.answer}`")
        for setting, by_model in answers.items():
            for name, texts in by_model.items():
                lines.append(f"- {setting}, {name}: `{texts[number]}`")
        lines.append("")
    (folder / "samples.md").write_text("\n".join(lines), encoding="utf-8")


def _answer(model_folder: Path, items: Sequence[Item], device: str) -> list[str]:
    """Return the first line that a model writes after each prompt, decoded greedily."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).to(device)
    batch = tokenizer([item.prompt for item in items], return_tensors="pt", padding=True)
    prompted = batch["input_ids"].shape[1]
    written = model.generate(
        **batch.to(device),
        max_new_tokens=56,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts = tokenizer.batch_decode(written[:, prompted:], skip_special_tokens=True)
    return [text.strip().split("\n")[0] for text in texts]


def merge_for_samples(subject: Subject) -> dict[str, Path]:
    """Return name -> folder of the models of a subject whose answers are written down.

    mergekit's own command makes the merges.
    """
    folder = subject.folder
    domains: dict[str, dict[str, str]] = subject.tasks["domains"]  # type: ignore[assignment]
    models = {
        "base": folder / subject.base,
        **{name: folder / domain["model"] for name, domain in domains.items()},
    }
    for name, recipe in SAMPLED.items():
        output = folder / "sampled" / Path(recipe).name
        command = str(Path(sys.executable).with_name("mergekit-yaml"))
        path = f"merged/{join(THREE)}/{recipe}.yml"
        subprocess.run([command, path, str(output), "--quiet"], cwd=folder, check=True)
        models[name] = output
    return models


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    required=True,
    help="The folder that smollm2_experts.py has written.",
)
@click.option("--seed", "seeds", multiple=True, type=int, default=[0, 1], show_default=True)
@click.option(
    "--setting",
    "chosen",
    multiple=True,
    type=click.Choice(list(SETTINGS)),
    help="Setting to measure and to put into the tables; all if not given.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Parts of experiments at a time; each takes a core.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, ...")
def main(
    folder: Path,
    models: Path,
    seeds: tuple[int, ...],
    chosen: tuple[str, ...],
    jobs: int,
    device: str,
) -> None:
    """Measure the experts in MODELS below FOLDER, and write the paper's tables for them."""
    folder, models = folder.resolve(), models.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_tasks(folder / "tasks")
    by_setting = {
        setting: [
            make_subject(folder, models, seed, setting, device) for seed in dict.fromkeys(seeds)
        ]
        for setting in dict.fromkeys(chosen or SETTINGS)
    }
    groups = [
        Group(f"SmolLM2 {setting}", measure(subjects, (), PLANS[setting], jobs))
        for setting, subjects in by_setting.items()
    ]
    write_report(folder, groups)
    sampled = {setting: merge_for_samples(group[0]) for setting, group in by_setting.items()}
    write_samples(folder, sampled, device)


if __name__ == "__main__":
    main()
