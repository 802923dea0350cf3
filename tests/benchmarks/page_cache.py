"""Load files into the page cache, or drop them from it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

BUFFER = 8 << 20


def fill(files: Iterable[Path]) -> None:
    """Read files once, so that the page cache holds them."""
    buffer = bytearray(BUFFER)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def drop(files: Iterable[Path]) -> None:
    """Drop files from the page cache, so that the next reader finds them on storage only.

    This needs no privileges.
    """
    os.sync()  # pages that are not written yet cannot be dropped
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
