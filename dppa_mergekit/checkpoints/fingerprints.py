"""Fingerprints of files: plain data that differs between two states of a checkpoint.

A fingerprint takes milliseconds: it reads the header of a file and a page of every tensor, not the
whole file.
"""

import hashlib
from pathlib import Path

from dppa_mergekit.checkpoints.safetensors_header import read_headers, read_raw_header
from dppa_mergekit.errors import CheckpointError

PAGE = 4096
"""Bytes that are read at one place of a file."""

PROBES = 16
"""Pages that are read of a file in which the places of the tensors are not known."""


def sample_content(path: Path) -> list[object]:
    """Return the name of a file, its size, and a hash of its header and of pages of its content.

    Of a safetensors file, the page in the middle of every tensor is read: fine-tuning may have
    moved any of them alone.
    """
    size_of_file = path.stat().st_size
    header, pages = None, [(size_of_file * probe // PROBES, PAGE) for probe in range(PROBES)]
    if path.suffix.lower() == ".safetensors":
        # A damaged file is refused when it is read; here it counts like any other.
        try:
            spans = [stored.span for stored in read_headers(path).values()]
            header = read_raw_header(path)
        except CheckpointError:
            pass
        else:
            pages = [
                (start + max(0, size - PAGE) // 2, min(size, PAGE))
                for start, size in (span for span in spans if span is not None)
            ]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(PAGE) if header is None else header)
        for start, size in pages:
            file.seek(start)
            digest.update(file.read(size))
    return [path.name, size_of_file, digest.hexdigest()]


def read_state(path: Path) -> list[object]:
    """Return a file's time of modification; in the Hub's cache, its revision and blob as well."""
    hub = [path.parent.name, path.resolve().name] if path.parent.parent.name == "snapshots" else []
    return [path.stat().st_mtime_ns, *hub]
