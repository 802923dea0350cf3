"""What a change of factors takes in memory, and what it takes by way of a checkpoint.

    python tests/benchmarks/factors.py FOLDER --size 1.0B

One fine-tuned model of the random checkpoints is held pruned at density 0.2, with two partitions.
In memory: new factors are written to the live weights. By way of a checkpoint: the live model is
saved and loaded again, which is what is left of a candidate when a search writes a checkpoint for
each; the merge itself would come on top. Rounds alternate between both.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import click
import torch
from model_sizes import SIZES
from random_models import Family, ensured
from tables import markdown
from transformers import AutoModelForCausalLM

from dppa_mergekit.recipes import Recipe
from dppa_mergekit.resident import ResidentModel


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def recipe(family: Family) -> Recipe:
    """One model alone, pruned at 80 %."""
    parameters = {"weight": 1.0, "density": 0.2}
    model = str((family.path / "tuned_1").resolve())
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
    resident = ResidentModel.load(recipe(family), folder)
    own = sum(each.nbytes for each in resident.model.parameters())
    saved = folder / "saved"
    both, single, checkpoint = [], [], []

    def reload() -> None:
        shutil.rmtree(saved, ignore_errors=True)
        resident.model.save_pretrained(saved)
        AutoModelForCausalLM.from_pretrained(saved, dtype="auto")

    for turn in range(rounds):
        factor = 1.5 + turn / 10
        both.append(seconds(lambda f=factor: resident.set_factors({90: f, 80: f})))
        single.append(seconds(lambda f=factor: resident.set_factors({90: f, 80: f + 0.05})))
        checkpoint.append(seconds(reload))
    shutil.rmtree(saved, ignore_errors=True)
    rows = [
        ["two factors", f"{median(both):.2f} s", f"1/{median(checkpoint) / median(both):.0f}"],
        ["one factor", f"{median(single):.2f} s", f"1/{median(checkpoint) / median(single):.0f}"],
        ["save and load", f"{median(checkpoint):.2f} s", "1"],
    ]
    click.echo(f"{size}, {torch.get_num_threads()} threads, {rounds} rounds\n")
    click.echo(markdown(["change", "median", "of save and load"], rows))
    click.echo(
        f"\nBeside the model's {own / 1e9:.2f} GB: {resident.bytes_held / 1e9:.2f} GB, "
        f"{resident.bytes_held / own:.2f} x"
    )


if __name__ == "__main__":
    main()
