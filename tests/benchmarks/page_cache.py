"""Bring files into the page cache, or drop them from it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

BUFFER = 8 << 20


def fill(files: Iterable[Path]) -> None:
    """Read files once."""
    buffer = bytearray(BUFFER)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(files: Iterable[Path]) -> None:
    """Let the next reader of these files find them on storage only; needs no privileges."""
    os.sync()  # pages that are still to be written cannot be dropped
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
