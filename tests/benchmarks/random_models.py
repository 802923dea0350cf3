"""Random Llama checkpoints in bfloat16, a base and fine-tuned models, for the other scripts.

    python tests/benchmarks/random_models.py FOLDER --size 0.2B

Complete models are kept, so an interrupted run resumes. This module finds the missing models and
starts random_weights.py to write them.
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
SPARSE_PARTS = 4  # a sparse checkpoint stores one of so many parts of each tensor
SEED = 0

_MARK = "random_model.json"

Command = TypeVar("Command", bound=Callable[..., object])


@dataclass(frozen=True)
class Family:
    """A base and its fine-tuned models: the content of the checkpoints and their folder.

    Attributes:
        folder: The folder of all families.
        size: A name in SIZES.
        models: Number of fine-tuned models.
        layers: Number of layers; None for that of the size.
        shard_size: Bytes of a shard of a checkpoint.
        sparse: Whether only the first quarter of each tensor is written. The rest are holes in the
            files, which take no room on the disk and read as zeros. This suits measurements of
            memory, not of time.
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
        """The folder of this family; every depth and shard size has its own."""
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
        """The names of the models' folders, the base first."""
        return ["base", *(f"tuned_{number}" for number in range(1, self.models + 1))]

    @property
    def missing(self) -> list[str]:
        """The models that are missing or incomplete."""
        return [name for name in self.names if not self._is_complete(name)]

    def list_weight_files(self, name: str) -> list[Path]:
        """Return the shards of one model."""
        return sorted((self.path / name).glob("*.safetensors"))

    def list_all_weight_files(self) -> list[Path]:
        """Return the shards of all models."""
        return [path for name in self.names for path in self.list_weight_files(name)]

    def mark_complete(self, name: str) -> None:
        """Mark a model as complete; call this after all its files are written."""
        (self.path / name / _MARK).write_text(self._describe(), encoding="utf-8")

    def _is_complete(self, name: str) -> bool:
        mark = self.path / name / _MARK
        return mark.exists() and mark.read_text(encoding="utf-8") == self._describe()

    def _describe(self) -> str:
        """Return the content of the file that marks a model as complete."""
        content = {
            **asdict(self.shape),
            "shard_size": self.shard_size,
            "sparse": self.sparse,
            "seed": SEED,
        }
        return json.dumps(content, indent=2) + "\n"


def write_missing(family: Family) -> Family:
    """Write the missing models of a family, and return the family.

    Raises:
        click.ClickException: The disk has too little room.
    """
    missing = family.missing
    if not missing:
        return family
    family.path.mkdir(parents=True, exist_ok=True)
    for name in missing:  # an incomplete model is written again, and must take no room meanwhile
        shutil.rmtree(family.path / name, ignore_errors=True)
    needed = len(missing) * family.shape.parameters * BYTES_PER_PARAMETER
    if family.sparse:
        needed //= SPARSE_PARTS
    free = shutil.disk_usage(family.path).free
    if needed > free:
        raise click.ClickException(
            f"{family.path}: {len(missing)} models need {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB "
            "are free."
        )
    # A process of its own takes the memory that writing needs (see processes.py).
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


def add_family_options(command: Command) -> Command:
    """Add the options that describe a family to a command."""
    for option in (
        click.option(
            "--sparse", is_flag=True, help="Write a quarter of each tensor; the rest are holes."
        ),
        click.option(
            "--shard-size",
            type=click.IntRange(min=1),
            default=SHARD_SIZE,
            show_default=True,
            help="Bytes of a shard of a checkpoint.",
        ),
        click.option(
            "--layers",
            type=click.IntRange(min=1),
            help="Number of layers; that of the size if not given.",
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
@add_family_options
def main(
    folder: Path, size: str, models: int, layers: int | None, shard_size: int, sparse: bool
) -> None:
    """Write random checkpoints below FOLDER and print their folder."""
    family = write_missing(Family(folder, size, models, layers, shard_size, sparse))
    click.echo(f"{family.path}: {', '.join(family.names)}, each {family.shape.parameters:,}")


if __name__ == "__main__":
    main()
