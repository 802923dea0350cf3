"""The C sources of the compiled passes, and the digest that ties a library to them.

The build runs this file by itself, before the package is installed, so it imports the standard
library only.
"""

import hashlib
from pathlib import Path

SOURCES = ("passes.c", "passes_of_dtype.h")
"""The file to compile, followed by the files that it includes."""


def digest_sources(folder: Path) -> str:
    """Return the SHA-256 of the sources in a folder, in hexadecimal."""
    contents = [(folder / name).read_bytes() for name in SOURCES]
    return hashlib.sha256(b"\0".join(contents)).hexdigest()
