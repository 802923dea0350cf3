"""The journal of a long run: every finished piece of work, on disk before the next one begins.

One JSON line each, after a header that says what the run is of. A run that was killed reads it and
goes on; it makes no piece twice. A search keeps its evaluations in one, AdaMerging its states.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from dppa_mergekit.errors import DppaError

if TYPE_CHECKING:
    from typing import TextIO

LOG = logging.getLogger(__name__)

Entry = dict[str, object]


@dataclass
class Journal:
    """An open journal.

    Attributes:
        path: Of its file.
        entries: What was in it, and what was added.
    """

    path: Path
    entries: list[Entry]
    _file: TextIO = field(repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, entry: Entry) -> None:
        """Write one entry, and wait until the disk has it; from any thread."""
        with self._lock:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self.entries.append(entry)


@contextmanager
def open_journal(path: Path, subject: Mapping[str, object]) -> Iterator[Journal]:
    """The journal in a file, new or gone on with, locked against other runs.

    Args:
        path: Of the file.
        subject: Plain data about what the run is of, part by part.

    Raises:
        DppaError: Another run has it open, it is of another subject, or it cannot be written.
    """
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DppaError(f"Another run is writing {path}; wait for it, or end it.") from None
    except OSError as error:
        raise DppaError(f"{path} cannot be written: {error}.") from error
    try:
        header = json.loads(json.dumps(subject))
        entries = _read(path, header)
        with path.open("a", encoding="utf-8") as file:
            journal = Journal(path, entries, file)
            if path.stat().st_size == 0:
                journal.add(header)
                journal.entries.clear()
            yield journal
    finally:
        lock.release()


def _read(path: Path, header: Entry) -> list[Entry]:
    """The entries of a journal that exists; a last line that was torn is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole, newline, torn = content.rpartition(b"\n")
    if torn:
        LOG.warning("%s: its last line is incomplete and is dropped.", path)
        with path.open("rb+") as file:
            file.truncate(len(whole) + len(newline))
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise DppaError(f"{path} is damaged: {error}; delete it to begin anew.") from error
    if not lines:
        return []
    first, *entries = lines
    differing = [key for key in {**header, **first} if first.get(key) != header.get(key)]
    if differing:
        raise DppaError(
            f"{path} is the journal of another run: it differs in {', '.join(differing)}; "
            f"delete it to begin anew, or name another output."
        )
    return entries
