"""Runs the steps for the recipes of a set of models, or prints them and checks headers."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import click
import yaml
from huggingface_hub import get_token
from model_sets import ModelSet
from steps import Step, list_steps
from stored_models import write_headers

from dppa_mergekit import check
from dppa_mergekit.scoring.tasks import folder_hash

CODE_SWITCH = "HF_ALLOW_CODE_EVAL"
"""The environment variable without which the tasks that run code refuse to be loaded."""


def check_headers(model_set: ModelSet, folder: Path, chosen: Sequence[str]) -> None:
    """Check recipes against checkpoints that have the headers of the real models.

    Args:
        model_set: The set of models.
        folder: The folder of the run.
        chosen: Names of the recipes.

    Raises:
        click.ClickException: A check found errors.
    """
    for model in {model for name in chosen for model in model_set.pool(name).inputs}:
        write_headers(find_headers(folder, model), model_set.models[model])
    for name in chosen:
        text = yaml.safe_dump(model_set.recipe(name), sort_keys=False)
        for model in sorted(model_set.pool(name).inputs, key=len, reverse=True):
            text = text.replace(f" {model}\n", f" {find_headers(folder, model)}\n")
        path = folder / "headers" / f"{name}.yml"
        path.write_text(text, encoding="utf-8")
        click.echo(f"# {name}, on headers")
        findings = []
        for finding in check(path):
            click.echo(str(finding))
            findings.append(finding)
        if any(finding.severity == "error" for finding in findings):
            raise click.ClickException(f"{name} does not fit the models.")


def find_headers(folder: Path, model: str) -> Path:
    """Return the folder of a model's headers."""
    return folder / "headers" / model.replace("/", "--")


def run(command: Sequence[str], folder: Path) -> None:
    """Run a command of this environment in a folder.

    Raises:
        click.ClickException: The command failed.
    """
    tool = Path(sys.executable).with_name(command[0])
    environment = os.environ | ({CODE_SWITCH: "1"} if command[0] == "lm_eval" else {})
    ended = subprocess.run([tool, *command[1:]], cwd=folder, env=environment, check=False)
    if ended.returncode:
        raise click.ClickException(f"{' '.join(command[:2])} has failed.")


def identify_step(model_set: ModelSet, step: Step, folder: Path) -> str:
    """Return a step's command with a digest of the recipes and tasks that it reads."""
    digest = sha256((folder_hash(model_set.tasks_folder) or "").encode())
    for argument in step.command:
        path = folder / argument  # an absolute path stays as it is
        if argument.endswith(".yml") and argument != step.writes and path.exists():
            digest.update(path.read_bytes())
    return f"{shlex.join(step.command)}  # {digest.hexdigest()[:12]}"


def run_steps(
    model_set: ModelSet, folder: Path, name: str, steps: Sequence[Step], dry_run: bool
) -> None:
    """Print the steps for one recipe and, unless this is a dry run, run those that have not ended.

    Args:
        model_set: The set of models.
        folder: The folder of the run.
        name: Name of the recipe.
        steps: Its steps.
        dry_run: Whether the steps are only printed.

    Raises:
        click.ClickException: A command failed.
    """
    listed = folder / "ended" / f"{name}.txt"
    ended = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    for number, step in enumerate(steps):
        click.echo(str(step))
        line = identify_step(model_set, step, folder)
        exists = (folder / step.writes).exists()
        if dry_run or (exists and ended[number : number + 1] == [line]):
            continue
        # Later steps read what this step writes, so they have not ended either.
        ended = ended[:number]
        listed.parent.mkdir(exist_ok=True)
        _write_lines(listed, ended)
        for kind in ("prompts", "tuned", "learned", "merged"):
            (folder / kind).mkdir(exist_ok=True)
        run(step.command, folder)
        ended.append(line)
        _write_lines(listed, ended)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def make_command(model_set: ModelSet) -> click.Command:
    """Return the command that runs a set."""

    @click.command()
    @click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
    @click.option(
        "--recipe",
        "chosen",
        multiple=True,
        type=click.Choice(model_set.recipes),
        default=model_set.recipes,
    )
    @click.option("--dry-run", is_flag=True, help="Only print the commands and check headers.")
    @click.option("--device", default="cuda", show_default=True, help="cpu, cuda, ...")
    @click.option(
        "--rate",
        type=click.FloatRange(0, min_open=True),
        default=250.0,
        show_default=True,
        help="New tokens a second, for estimates of time.",
    )
    @click.option(
        "--repository", help="Repository on the Hub to upload to; a dry run if not given."
    )
    def main(
        folder: Path,
        chosen: tuple[str, ...],
        dry_run: bool,
        device: str,
        rate: float,
        repository: str | None,
    ) -> None:
        """Check, analyze, tune, merge, evaluate and publish, all in FOLDER."""
        if repository is not None and len(chosen) != 1:
            raise click.UsageError("--repository takes one merge; choose it with --recipe.")
        if repository is not None and not dry_run and get_token() is None:
            raise click.UsageError(
                "--repository needs a login to the Hub: run `hf auth login` first."
            )
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        model_set.write_files(folder)
        if dry_run:
            check_headers(model_set, folder, chosen)
        read = {model for name in chosen for model in model_set.pool(name).inputs}
        size = sum(model_set.models[model].bytes for model in read)
        click.echo(f"# inputs: {len(read)} models, {size / 1e9:.0f} GB")
        for name in chosen:
            click.echo(f"# {name}")
            steps = list_steps(model_set, name, device, rate, repository)
            run_steps(model_set, folder, name, steps, dry_run)

    return main
