"""Checks of output paths, and files that are written whole or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dppa_mergekit.errors import DppaError


def check_output(path: Path) -> None:
    """Raise DppaError if a file cannot be written at this path."""
    folder = path.resolve().parent
    if path.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"there is no folder {folder}"
    elif not os.access(folder, os.W_OK):
        reason = f"the folder {folder} cannot be written to"
    else:
        return
    raise DppaError(
        f"{path} cannot be written: {reason}; allowed is a file in a folder that exists and can be "
        f"written to."
    )


def check_output_folder(folder: Path, file: str) -> None:
    """Raise DppaError if a folder cannot be created, or a file cannot be written in it."""
    missing = [parent for parent in (folder, *folder.parents) if not os.path.exists(parent)]
    check_output(missing[-1] if missing else folder / file)


def check_recipe_output(path: Path) -> None:
    """Raise DppaError if a recipe cannot be written at this path, or has another extension."""
    check_output(path)
    if path.suffix not in (".yml", ".yaml"):
        raise DppaError(
            f"{path} is not a file name for a recipe: the extension must be .yml or .yaml, since "
            f"tables and plots are written beside it with other extensions."
        )


@contextmanager
def stage_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and move its file to `path` afterwards.

    Other processes see the old file or the whole new one. If the block raises, the temporary file
    is deleted and `path` stays as it was.
    """
    staged = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        yield staged
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; text is encoded as UTF-8."""
    with stage_file(path) as staged:
        if isinstance(content, bytes):
            staged.write_bytes(content)
        else:
            staged.write_text(content, encoding="utf-8")
