"""What a change of factors takes in memory, and what it takes by way of a checkpoint.

    python tests/benchmarks/factors.py FOLDER --size 1.0B

One fine-tuned model of the random checkpoints is held pruned at density 0.2, with two partitions.
In memory: new factors are written to the live weights. By way of a checkpoint: `mergekit-yaml`
merges the recipe with new factors, what it knows of the kept sets included, and transformers loads
the result until every page of it is in memory. Of that, saving and loading are timed alone too,
with the live model. Rounds alternate between all.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import torch
from merge_runs import mergekit_yaml
from model_sizes import SIZES
from random_models import Family, ensured
from tables import markdown
from transformers import AutoModelForCausalLM

from dppa_mergekit.live.amplified_model import AmplifiedModel
from dppa_mergekit.recipes import Recipe

PAGE = 4096
"""Bytes of memory that are read from a file at once."""

WHOLE = ("save and load", "mergekit-yaml and load")
"""By way of a checkpoint."""


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def tuned_model(family: Family) -> Path:
    """The fine-tuned model."""
    return (family.path / "tuned_1").resolve()


def recipe(family: Family) -> Recipe:
    """One model alone, pruned at 80 %."""
    parameters = {"weight": 1.0, "density": 0.2}
    model = str(tuned_model(family))
    return Recipe(
        {
            "merge_method": "dppa",
            "base_model": str((family.path / "base").resolve()),
            "models": [{"model": model, "parameters": parameters}],
        }
    )


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--size", type=click.Choice(list(SIZES)), default="1.0B", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
def main(folder: Path, size: str, rounds: int) -> None:
    """Measure with a model of the checkpoints below FOLDER, which are written if need be."""
    family = ensured(Family(folder, size, 1))
    resident = AmplifiedModel.load(recipe(family), folder)
    own = sum(each.nbytes for each in resident.model.parameters())
    saved = folder / "saved"

    def load() -> None:
        model = AutoModelForCausalLM.from_pretrained(saved, dtype="auto")
        for parameter in model.parameters():
            parameter.view(-1).view(torch.uint8)[::PAGE].sum()

    def reload() -> None:
        resident.model.save_pretrained(saved)
        load()

    def merge(factor: float) -> None:
        path = saved.with_suffix(".yml")
        factors = {"amplify_90": factor, "amplify_80": factor}
        merging = recipe(family).with_parameters(str(tuned_model(family)), factors)
        path.write_text(merging.to_yaml(), encoding="utf-8")
        subprocess.run([*mergekit_yaml(), path, saved], check=True, capture_output=True)
        load()

    taken: dict[str, list[float]] = {}
    for turn in range(rounds):
        factor = 1.5 + turn / 10
        changes: dict[str, Callable[[], object]] = {
            "two factors": lambda f=factor: resident.set_factors({90: f, 80: f}),
            "one factor": lambda f=factor: resident.set_factors({90: f, 80: f + 0.05}),
            "save and load": reload,
            "mergekit-yaml and load": lambda f=factor: merge(f),
        }
        for name, change in changes.items():
            shutil.rmtree(saved, ignore_errors=True)
            taken.setdefault(name, []).append(seconds(change))
    shutil.rmtree(saved, ignore_errors=True)
    saved.with_suffix(".yml").unlink()
    medians = {name: median(each) for name, each in taken.items()}
    rows = [
        [name, f"{value:.2f} s", *(f"{value / medians[whole]:.3f} x" for whole in WHOLE)]
        for name, value in medians.items()
    ]
    click.echo(f"{size}, {torch.get_num_threads()} threads, {rounds} rounds\n")
    click.echo(markdown(["change", "median", *(f"of {whole}" for whole in WHOLE)], rows))
    click.echo(
        f"\nBeside the model's {own / 1e9:.2f} GB: {resident.bytes_held / 1e9:.2f} GB, "
        f"{resident.bytes_held / own:.2f} x"
    )


if __name__ == "__main__":
    main()
