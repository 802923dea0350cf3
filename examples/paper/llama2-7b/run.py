"""LLaMA-2-7B with Abel, finance-chat and law-chat: from the check of a recipe to its publication.

    python examples/paper/llama2-7b/run.py FOLDER --dry-run
    python examples/paper/llama2-7b/run.py FOLDER --recipe three_80 --device cuda

With `--dry-run` it prints every command with an estimate of its needs, and checks the recipes
against files in FOLDER that have the headers of these models and no weights. Without it, it runs
the commands one after the other. A command that has ended does not run again, unless its recipe,
its tasks or an earlier step changes.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import click
import yaml
from huggingface_hub import get_token
from model_headers import MODELS, write_headers
from recipe_files import HERE, RECIPES, list_inputs, read_recipe
from steps import Step, list_steps

from dppa_mergekit.scoring.tasks import folder_hash


def check_headers(folder: Path) -> None:
    """Check all recipes against checkpoints that have the headers of the real models.

    Raises:
        click.ClickException: A check found errors.
    """
    for model, stored in MODELS.items():
        write_headers(find_headers(folder, model), stored)
    for name in RECIPES:
        recipe = read_recipe(name)
        recipe["base_model"] = str(find_headers(folder, recipe["base_model"]))
        for model in recipe["models"]:
            model["model"] = str(find_headers(folder, model["model"]))
        path = folder / "headers" / f"{name}.yml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        click.echo(f"# {name}, on headers")
        run(("mergekit-dppa", "check", str(path)), folder)


def find_headers(folder: Path, model: str) -> Path:
    """Return the folder of a model's headers."""
    return folder / "headers" / model.replace("/", "--")


def run(command: Sequence[str], folder: Path) -> None:
    """Run a command of this environment in a folder.

    Raises:
        click.ClickException: The command failed.
    """
    tool = Path(sys.executable).with_name(command[0])
    if subprocess.run([tool, *command[1:]], cwd=folder, check=False).returncode:
        raise click.ClickException(f"{' '.join(command[:2])} has failed.")


def identify_step(step: Step, folder: Path) -> str:
    """Return a step's command with a digest of the recipes and tasks that it reads."""
    digest = sha256(folder_hash(HERE / "tasks").encode())
    for argument in step.command:
        path = folder / argument  # an absolute path stays as it is
        if argument.endswith(".yml") and argument != step.writes and path.exists():
            digest.update(path.read_bytes())
    return f"{shlex.join(step.command)}  # {digest.hexdigest()[:12]}"


def run_steps(folder: Path, name: str, steps: Sequence[Step], dry_run: bool) -> None:
    """Print the steps for one recipe and, unless this is a dry run, run those that have not ended.

    Raises:
        click.ClickException: A command failed.
    """
    listed = folder / "ended" / f"{name}.txt"
    ended = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    for number, step in enumerate(steps):
        click.echo(str(step))
        line = identify_step(step, folder)
        exists = (folder / step.writes).exists()
        if dry_run or (exists and ended[number : number + 1] == [line]):
            continue
        # Later steps read what this step writes, so they have not ended either.
        ended = ended[:number]
        listed.parent.mkdir(exist_ok=True)
        _write_lines(listed, ended)
        for kind in ("factors", "weights", "merged"):
            (folder / kind).mkdir(exist_ok=True)
        run(step.command, folder)
        ended.append(line)
        _write_lines(listed, ended)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--recipe", "chosen", multiple=True, type=click.Choice(RECIPES), default=RECIPES)
@click.option("--dry-run", is_flag=True, help="Only print the commands and check headers.")
@click.option("--device", default="cuda", show_default=True, help="cpu, cuda, ...")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    default=250.0,
    show_default=True,
    help="New tokens a second, for estimates of time.",
)
@click.option("--repository", help="Repository on the Hub to upload to; a dry run if not given.")
def main(
    folder: Path,
    chosen: tuple[str, ...],
    dry_run: bool,
    device: str,
    rate: float,
    repository: str | None,
) -> None:
    """Check, analyze, search, adamerge, merge, evaluate and publish, all in FOLDER."""
    if repository is not None and len(chosen) != 1:
        raise click.UsageError("--repository takes one merge; choose it with --recipe.")
    if repository is not None and not dry_run and get_token() is None:
        raise click.UsageError("--repository needs a login to the Hub: run `hf auth login` first.")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if dry_run:
        check_headers(folder)
    inputs = {model: MODELS[model].bytes for name in chosen for model in list_inputs(name)}
    click.echo(f"# inputs: {len(inputs)} models, {sum(inputs.values()) / 1e9:.0f} GB")
    for name in chosen:
        run_steps(folder, name, list_steps(name, device, rate, repository), dry_run)


if __name__ == "__main__":
    main()
