"""Random Llama checkpoints in bfloat16, a base and fine-tuned models, for the other scripts.

    python tests/benchmarks/random_models.py FOLDER --size 0.2B

What is complete already is kept, so an interrupted run goes on where it was. This module finds
out what is missing and lets random_weights.py write it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import click
from model_sizes import BYTES_PER_PARAMETER, SIZES, Shape

SHARD_SIZE = 5_000_000_000
SPARSE_PARTS = 4  # of a tensor of a sparse checkpoint, one is written
SEED = 0

_MARK = "random_model.json"

Command = TypeVar("Command", bound=Callable[..., object])


@dataclass(frozen=True)
class Family:
    """A base and its fine-tuned models: what is in the checkpoints, and in which folder they are.

    Attributes:
        folder: Of all families.
        size: A name in SIZES.
        models: Number of fine-tuned models.
        layers: Depth in place of the size's own.
        shard_size: Of each checkpoint, in bytes.
        sparse: Whether only the first quarter of each tensor is written. The rest are holes in the
            files, which take no room on the disk and are read as zeros: for sizes and memory, and
            not for times.
    """

    folder: Path
    size: str
    models: int = 3
    layers: int | None = None
    shard_size: int = SHARD_SIZE
    sparse: bool = False

    @property
    def shape(self) -> Shape:
        """The dimensions of each model."""
        shape = SIZES[self.size]
        return shape if self.layers is None else replace(shape, layers=self.layers)

    @property
    def path(self) -> Path:
        """The folder of this family: another depth or another shard size is another folder."""
        name = self.size
        if self.layers is not None:
            name += f"-{self.layers}-layers"
        if self.shard_size != SHARD_SIZE:
            name += f"-shards-of-{self.shard_size}"
        if self.sparse:
            name += "-sparse"
        return self.folder / name

    @property
    def names(self) -> list[str]:
        """The models' folders, the base first."""
        return ["base", *(f"tuned_{number}" for number in range(1, self.models + 1))]

    @property
    def missing(self) -> list[str]:
        """The models that are not there, or not completely."""
        return [name for name in self.names if not self._is_complete(name)]

    def weight_files(self, name: str) -> list[Path]:
        """The shards of one model."""
        return sorted((self.path / name).glob("*.safetensors"))

    def all_weight_files(self) -> list[Path]:
        """The shards of all models."""
        return [path for name in self.names for path in self.weight_files(name)]

    def mark_complete(self, name: str) -> None:
        """Say that a model is written; to be called last."""
        (self.path / name / _MARK).write_text(self._mark(), encoding="utf-8")

    def _is_complete(self, name: str) -> bool:
        mark = self.path / name / _MARK
        return mark.exists() and mark.read_text(encoding="utf-8") == self._mark()

    def _mark(self) -> str:
        content = {
            **asdict(self.shape),
            "shard_size": self.shard_size,
            "sparse": self.sparse,
            "seed": SEED,
        }
        return json.dumps(content, indent=2) + "\n"


def ensure(
    folder: Path,
    size: str,
    models: int = 3,
    layers: int | None = None,
    shard_size: int = SHARD_SIZE,
) -> Path:
    """Write what is missing of a family; returns its folder with `base`, `tuned_1` and so on."""
    return ensured(Family(folder, size, models, layers, shard_size)).path


def ensured(family: Family) -> Family:
    """Write what is missing of a family; returns it.

    Raises:
        click.ClickException: There is not enough room.
    """
    missing = family.missing
    if not missing:
        return family
    family.path.mkdir(parents=True, exist_ok=True)
    for name in missing:  # what is incomplete is written anew, and takes no room meanwhile
        shutil.rmtree(family.path / name, ignore_errors=True)
    needed = len(missing) * family.shape.parameters * BYTES_PER_PARAMETER
    if family.sparse:
        needed //= SPARSE_PARTS
    free = shutil.disk_usage(family.path).free
    if needed > free:
        raise click.ClickException(
            f"{family.path}: {len(missing)} models take {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free."
        )
    # In a process of its own, for the memory that the writing takes (see processes.py).
    command = [
        sys.executable,
        str(Path(__file__).with_name("random_weights.py")),
        str(family.folder),
        f"--size={family.size}",
        f"--models={family.models}",
        f"--shard-size={family.shard_size}",
    ]
    if family.layers is not None:
        command.append(f"--layers={family.layers}")
    if family.sparse:
        command.append("--sparse")
    subprocess.run(command, check=True)
    return family


def parameters(size: str, layers: int | None = None) -> int:
    """Number of parameters of a model of that size."""
    return Family(Path(), size, layers=layers).shape.parameters


def family_options(command: Command) -> Command:
    """The command-line options that say which family is meant."""
    for option in (
        click.option(
            "--sparse", is_flag=True, help="Write a quarter of each tensor, and holes for the rest."
        ),
        click.option(
            "--shard-size",
            type=click.IntRange(min=1),
            default=SHARD_SIZE,
            show_default=True,
            help="Bytes per shard of a checkpoint.",
        ),
        click.option(
            "--layers", type=click.IntRange(min=1), help="Depth in place of the size's own."
        ),
        click.option(
            "--models",
            type=click.IntRange(min=1),
            default=3,
            show_default=True,
            help="Number of fine-tuned models.",
        ),
        click.option("--size", type=click.Choice(list(SIZES)), required=True),
        click.argument("folder", type=click.Path(path_type=Path, file_okay=False)),
    ):
        command = option(command)
    return command


@click.command()
@family_options
def main(
    folder: Path, size: str, models: int, layers: int | None, shard_size: int, sparse: bool
) -> None:
    """Write random checkpoints below FOLDER and print where they are."""
    family = ensured(Family(folder, size, models, layers, shard_size, sparse))
    click.echo(f"{family.path}: {', '.join(family.names)}, each {family.shape.parameters:,}")


if __name__ == "__main__":
    main()
