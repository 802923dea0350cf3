"""Do the least work of a merge in two passes: read all inputs twice, write one output.

This script copies without arithmetic. merges.py runs it as a process and measures it.
"""

from __future__ import annotations

from pathlib import Path

import click
from page_cache import BUFFER, fill


def copy(source: Path, target: Path) -> None:
    """Copy a file through a buffer of the size that `fill` uses."""
    buffer = bytearray(BUFFER)
    view = memoryview(buffer)
    with source.open("rb", buffering=0) as file, target.open("wb", buffering=0) as out:
        while size := file.readinto(buffer):
            written = 0
            while written < size:
                written += out.write(view[written:size])


@click.command()
@click.argument("output", type=click.Path(path_type=Path, file_okay=False))
@click.argument("base", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument(
    "fine_tuned", type=click.Path(path_type=Path, exists=True, file_okay=False), nargs=-1
)
def main(output: Path, base: Path, fine_tuned: tuple[Path, ...]) -> None:
    """Read the weights of BASE and of all FINE_TUNED twice; the second time, copy those of BASE."""
    files = {folder: sorted(folder.glob("*.safetensors")) for folder in (base, *fine_tuned)}
    fill(path for folder in files for path in files[folder])
    output.mkdir(parents=True, exist_ok=True)
    for path in files[base]:
        copy(path, output / path.name)
    fill(path for folder in fine_tuned for path in files[folder])


if __name__ == "__main__":
    main()
