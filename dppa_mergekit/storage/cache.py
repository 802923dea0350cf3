"""The cache: a small file for each result that was computed from a model's weights.

The file name is a hash of everything that the content depends on, so an entry is never out of
date: changed inputs have another name. An entry is a checksum and a line of JSON, and is written
whole or not at all, so that concurrent runs can share the folder. The environment variable
DPPA_MERGEKIT_CACHE names another folder, or turns the cache off (`off` or `0`).
"""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Generic, TypeVar

from platformdirs import user_cache_path
from pydantic import TypeAdapter

from dppa_mergekit.errors import first_line
from dppa_mergekit.storage.output_files import write_whole
from dppa_mergekit.version import __version__

LOG = logging.getLogger(__name__)

FORMAT = 2
"""Raise this number whenever stored content changes; entries of other formats are then ignored."""

VARIABLE = "DPPA_MERGEKIT_CACHE"
OFF = ("0", "off")

Content = TypeVar("Content")


def cache_folder() -> Path | None:
    """Return the folder of all entries; None if the cache is turned off."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() in OFF:
        return None
    return Path(chosen).expanduser() if chosen else user_cache_path("dppa-mergekit") / "statistics"


@dataclass(frozen=True)
class CacheEntry(Generic[Content]):
    """A file of the cache, which may not exist yet.

    Attributes:
        path: The file.
        model: The model's name in the recipe, for warnings.
        what: The kind of content, a noun in the plural, for warnings.
        adapter: Reads and writes the content as JSON.
    """

    path: Path
    model: str
    what: str
    adapter: TypeAdapter[Content]

    def read(self) -> Content | None:
        """Return the content; None without a file, or, with a warning, if it is damaged."""
        try:
            checksum, content = self.path.read_text(encoding="utf-8").split("\n", 1)
            if checksum != _checksum(content):
                raise ValueError("its checksum is wrong")
            return self.adapter.validate_json(content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            LOG.warning(
                "%s: the cached %s in %s are damaged or cannot be read (%s); they are computed "
                "again.",
                self.model,
                self.what,
                self.path,
                first_line(error),
            )
            return None

    def write(self, found: Content) -> None:
        """Store the content; log a warning if the file cannot be written."""
        content = self.adapter.dump_json(found).decode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, f"{_checksum(content)}\n{content}")
        except OSError as error:
            LOG.warning(
                "%s: its %s cannot be cached in %s (%s); set %s to another folder, or to off.",
                self.model,
                self.what,
                self.path.parent,
                error.strerror,
                VARIABLE,
            )


def cache_entry(
    where: Path, model: str, what: str, adapter: TypeAdapter[Content], depends: object
) -> CacheEntry[Content]:
    """Return the cache entry of one kind of content of a model.

    Args:
        where: The folder of the cache.
        model: The model's name in the recipe.
        what: The kind of content, a noun in the plural.
        adapter: Reads and writes the content as JSON.
        depends: Everything that the content depends on, as plain data: files, tensors, dtypes,
            options.
    """
    versions = [__version__, FORMAT, *(version(name) for name in ("mergekit", "transformers"))]
    key = json.dumps([versions, what, depends], sort_keys=True)
    name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    return CacheEntry(where / name, model, what, adapter)


def _checksum(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
