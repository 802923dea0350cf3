"""The journal of a long run: each finished piece of work is on disk before the next one begins.

A journal is a file of JSON lines: a header that describes the run, then an entry for each piece of
work. A run that was killed reads its journal and continues without repeating any piece. Searches
journal their evaluations, AdaMerging its states.
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

FORMAT = 3
"""Raise this number whenever the content of entries changes; older journals are then refused."""

Entry = dict[str, object]


@dataclass
class Journal:
    """An open journal.

    Attributes:
        path: The file.
        entries: Every entry of the file, without the header, in order.
    """

    path: Path
    entries: list[Entry]
    _file: TextIO = field(repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, entry: Entry) -> None:
        """Append an entry and wait until it is on disk. Any thread may call this."""
        with self._lock:
            self._write(entry)
            self.entries.append(entry)

    def _write(self, line: Entry) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def open_journal(path: Path, subject: Mapping[str, object]) -> Iterator[Journal]:
    """Open a new journal or continue an existing one, locked against other processes.

    Args:
        path: The file; its folder exists.
        subject: What the run depends on, as plain data: name -> value. It is stored in the header.

    Raises:
        DppaError: Another process has the journal open, or the journal is damaged, has another
            subject or format, or cannot be written.
    """
    lock = FileLock(path.with_name(path.name + ".lock"))
    # Through JSON, so that tuples compare equal to the lists that a header holds.
    header = json.loads(json.dumps({"format": FORMAT, **subject}))
    try:
        try:
            lock.acquire(timeout=0)
            entries = _read(path, header)
            file = path.open("a", encoding="utf-8")
        except Timeout:
            raise DppaError(
                f"Another run is writing {path}; wait until it ends, or stop it."
            ) from None
        except OSError as error:
            raise DppaError(f"{path} cannot be written: {error}.") from error
        with file:
            journal = Journal(path, entries, file)
            if path.stat().st_size == 0:
                journal._write(header)
            yield journal
    finally:
        lock.release()


def _read(path: Path, header: Entry) -> list[Entry]:
    """Return the entries of a journal if it exists, after cutting off an incomplete last line."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole, newline, incomplete = content.rpartition(b"\n")
    if incomplete:
        LOG.warning("%s: the last line is incomplete and is dropped.", path)
        with path.open("rb+") as file:
            file.truncate(len(whole) + len(newline))
    try:
        lines = [_parse(line) for line in whole.splitlines()]
    except ValueError as error:
        raise DppaError(f"{path} is damaged: {error}; delete it to start over.") from error
    if not lines:
        return []
    first, *entries = lines
    if first.get("format") != FORMAT:
        raise DppaError(
            f"{path} was written by another version of dppa-mergekit: its format is "
            f"{first.get('format', 1)}, and this version continues format {FORMAT} only; delete it "
            f"to start over, or name another output."
        )
    differing = [key for key in {**header, **first} if first.get(key) != header.get(key)]
    if differing:
        raise DppaError(
            f"{path} is the journal of another run: it differs in {', '.join(differing)}; "
            f"delete it to start over, or name another output."
        )
    return entries


def _parse(line: bytes) -> Entry:
    """Return a line as an entry. Raises ValueError if it is none."""
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError(f"a line is {line.decode()[:50]}, and no JSON object")
    return entry
