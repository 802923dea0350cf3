"""Run records: how the outputs of commands were produced, in a file beside them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from dppa_mergekit.storage.output_files import write_whole
from dppa_mergekit.version import __version__

LOG = logging.getLogger(__name__)

FILE = "dppa_run.json"
PACKAGES = ("mergekit", "torch", "transformers")


def versions() -> dict[str, str]:
    """Return package -> version, for the packages that a result depends on."""
    return {"dppa-mergekit": __version__, **{name: version(name) for name in PACKAGES}}


def write_record(
    output: Path, command: str, subject: Mapping[str, object], results: Sequence[object]
) -> None:
    """Add an output to the records in its folder, or replace its previous record.

    Args:
        output: The file or folder that was produced.
        command: The command that produced it.
        subject: Inputs, arguments and seeds, as plain data.
        results: What the command found, as plain data.
    """
    path = output.with_name(FILE)
    record = {
        "command": command,
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "sha256": digest(output),
        "versions": versions(),
        **subject,
        "results": list(results),
    }
    # Another command may finish in the same folder at the same time.
    with FileLock(path.with_name(f".{FILE}.lock")):
        records = {**read_records(path.parent), output.name: record}
        write_whole(path, json.dumps(records, indent=1) + "\n")


def digest(output: Path) -> str | None:
    """Return the SHA-256 of a file's content; None for a folder."""
    return hashlib.sha256(output.read_bytes()).hexdigest() if output.is_file() else None


def read_records(folder: Path) -> dict[str, object]:
    """Return the records in a folder: name of the output -> its record."""
    path = folder / FILE
    try:
        if not path.exists():
            return {}
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        LOG.warning("%s is damaged and is ignored.", path)
        return {}
