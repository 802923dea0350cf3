"""Run records: beside what a command produced, how it came to be."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from dppa_mergekit import __version__
from dppa_mergekit.errors import CheckpointError, first_line
from dppa_mergekit.outputs import write_whole

LOG = logging.getLogger(__name__)

FILE = "dppa_run.json"
PACKAGES = ("mergekit", "torch", "transformers")


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    return {"dppa-mergekit": __version__, **{name: version(name) for name in PACKAGES}}


def write_record(
    output: Path, command: str, subject: Mapping[str, object], results: Sequence[object]
) -> None:
    """Add to the record beside an output, or replace what it says of it.

    Args:
        output: The file or folder that was produced.
        command: What produced it.
        subject: Plain data about the inputs, arguments and seeds.
        results: Plain data.
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
    # Another command may end in the same folder at the same time.
    with FileLock(path.with_name(f".{FILE}.lock")):
        records = {**read_records(path.parent), output.name: record}
        write_whole(path, json.dumps(records, indent=1) + "\n")


def digest(output: Path) -> str | None:
    """Of the content of a file; None for a folder."""
    return hashlib.sha256(output.read_bytes()).hexdigest() if output.is_file() else None


def fingerprint(folder: Path) -> str:
    """What tells a model apart from others, wherever its folder lies: a copy is the same model.

    Of its weights (headers, and a part of every tensor), its configuration, and how it reads.

    Raises:
        CheckpointError: mergekit finds no weights in the folder.
    """
    from mergekit.io.lazy_tensor_loader import ShardedTensorIndex

    from dppa_mergekit.checkpoints import Checkpoint
    from dppa_mergekit.unmerged import BESIDE_WEIGHTS

    try:
        index = ShardedTensorIndex.from_disk(str(folder))
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: {first_line(error)}.") from error
    held = Checkpoint(str(folder), index).content()
    beside = {path for pattern in BESIDE_WEIGHTS for path in folder.glob(pattern)}
    read = sorted((path.name, digest(path)) for path in beside if path.is_file())
    return hashlib.sha256(repr([held, read]).encode()).hexdigest()


def read_records(folder: Path) -> dict[str, object]:
    """The records of what was produced in a folder: file or folder -> what is known of it."""
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        LOG.warning("%s is damaged and is left out.", path)
        return {}
