"""Compare a change of factors in memory with a change by way of a checkpoint.

    python tests/benchmarks/factors.py FOLDER --size 1.0B

A fine-tuned model of the random checkpoints is pruned at density 0.2, with two partitions. In
memory, new factors are written to the live weights. By way of a checkpoint, `mergekit-yaml` merges
the recipe with new factors, using its cached thresholds, and transformers loads the result until
every page of it is in memory. Saving and loading the live model are also timed alone. Every round
has all changes.
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
from merge_runs import find_mergekit_yaml
from model_sizes import SIZES
from random_models import Family, write_missing
from tables import format_table
from transformers import AutoModelForCausalLM

from dppa_mergekit.live.amplified_model import AmplifiedModel
from dppa_mergekit.recipes.recipe import Recipe

PAGE = 4096
"""Bytes of a page, the unit in which a mapped file is read."""

WHOLE = ("save and load", "mergekit-yaml and load")
"""The changes by way of a checkpoint."""


def time_work(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def find_fine_tuned(family: Family) -> Path:
    """Return the folder of the fine-tuned model."""
    return (family.path / "tuned_1").resolve()


def make_recipe(family: Family) -> Recipe:
    """Return the recipe of the model alone, pruned by 80 %."""
    parameters = {"weight": 1.0, "density": 0.2}
    model = str(find_fine_tuned(family))
    return Recipe(
        {
            "merge_method": "dppa",
            "base_model": str((family.path / "base").resolve()),
            "models": [{"model": model, "parameters": parameters}],
        }
    )


def count_bytes(resident: AmplifiedModel) -> int:
    """Return the memory that the kept elements take beside the model."""
    partitions = [partition for linear in resident._linears for partition in linear.partitions]
    return sum(
        tensor.nbytes
        for partition in partitions
        for tensor in (partition.bits, partition.delta.fine_tuned, partition.delta.base)
        if tensor is not None
    )


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--size", type=click.Choice(list(SIZES)), default="1.0B", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
def main(folder: Path, size: str, rounds: int) -> None:
    """Measure a model of the checkpoints below FOLDER; missing ones are written first."""
    family = write_missing(Family(folder, size, 1))
    resident = AmplifiedModel.load(make_recipe(family), folder)
    own = sum(parameter.nbytes for parameter in resident.model.parameters())
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
        merging = make_recipe(family).with_parameters(str(find_fine_tuned(family)), factors)
        path.write_text(merging.to_yaml(), encoding="utf-8")
        subprocess.run([*find_mergekit_yaml(), path, saved], check=True, capture_output=True)
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
            taken.setdefault(name, []).append(time_work(change))
    shutil.rmtree(saved, ignore_errors=True)
    saved.with_suffix(".yml").unlink()
    medians = {name: median(times) for name, times in taken.items()}
    rows = [
        [name, f"{value:.2f} s", *(f"{value / medians[whole]:.3f} x" for whole in WHOLE)]
        for name, value in medians.items()
    ]
    click.echo(f"{size}, {torch.get_num_threads()} threads, {rounds} rounds\n")
    click.echo(format_table(["change", "median", *(f"of {whole}" for whole in WHOLE)], rows))
    held = count_bytes(resident)
    click.echo(f"\nBeside the model's {own / 1e9:.2f} GB: {held / 1e9:.2f} GB, {held / own:.2f} x")


if __name__ == "__main__":
    main()
