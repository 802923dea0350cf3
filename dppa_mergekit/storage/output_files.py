"""Files that a run writes: refused where they cannot be, and there as a whole or not at all."""

import os
from pathlib import Path

from dppa_mergekit.errors import DppaError


def check_output(path: Path) -> None:
    """Refuse an output that cannot be written."""
    folder = path.resolve().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise DppaError(f"{path} cannot be written: its folder must exist, and be open.")


def check_output_folder(folder: Path, file: str) -> None:
    """Refuse a folder that cannot be made, or in which a file cannot be written."""
    missing = [each for each in (folder, *folder.parents) if not os.path.exists(each)]
    check_output(missing[-1] if missing else folder / file)


def check_recipe_output(path: Path) -> None:
    """Refuse the output of a recipe that cannot be written, or would be taken for a table."""
    check_output(path)
    if path.suffix not in (".yml", ".yaml"):
        raise DppaError(
            f"{path} is no name of a recipe: allowed are .yml and .yaml; tables and pictures go "
            f"beside it under other endings."
        )


def write_whole(path: Path, text: str) -> None:
    """Write a file under another name first, so that it is there as a whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
