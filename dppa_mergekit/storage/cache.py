"""What was found of models before: small files for each fine-tuned model on its base.

The file's name is a hash of all that its content depends on, so a file is never out of date: what
has changed has another name. It holds JSON and a checksum. It is written beside its place and moved
there, so that runs at the same time see all of it or nothing. DPPA_MERGEKIT_CACHE moves the folder,
or switches it off.
"""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Generic, TypeVar

from platformdirs import user_cache_path
from pydantic import TypeAdapter

from dppa_mergekit.version import __version__

LOG = logging.getLogger(__name__)

VARIABLE = "DPPA_MERGEKIT_CACHE"
OFF = ("0", "off")

Content = TypeVar("Content")


def cache_folder() -> Path | None:
    """Where the files lie; None if the cache is switched off."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() in OFF:
        return None
    return Path(chosen).expanduser() if chosen else user_cache_path("dppa-mergekit") / "statistics"


@dataclass(frozen=True)
class CacheEntry(Generic[Content]):
    """Where something about one model is kept.

    Attributes:
        path: The file, which may not exist yet.
        model: What the recipe calls the model.
        what: Is kept there, in the plural.
        adapter: Of its type.
    """

    path: Path
    model: str
    what: str
    adapter: TypeAdapter[Content]

    def read(self) -> Content | None:
        """The content, if there is any; a damaged file is a warning and counts for none."""
        try:
            checksum, content = self.path.read_text(encoding="utf-8").split("\n", 1)
            if checksum != _checksum(content):
                raise ValueError("its checksum does not fit")
            return self.adapter.validate_json(content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            LOG.warning(
                "%s: the cached %s %s are damaged or cannot be read (%s); they are measured again.",
                self.model,
                self.what,
                self.path,
                str(error).splitlines()[0],
            )
            return None

    def write(self, found: Content) -> None:
        """Keep the content; where that is not possible, a warning says so."""
        content = self.adapter.dump_json(found).decode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, suffix=".part")
            try:
                with open(handle, "w", encoding="utf-8") as file:
                    file.write(f"{_checksum(content)}\n{content}")
                os.replace(temporary, self.path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            LOG.warning(
                "%s: its %s cannot be kept in %s (%s); %s names another folder, or off.",
                self.model,
                self.what,
                self.path.parent,
                error.strerror,
                VARIABLE,
            )


def cache_entry(
    where: Path, model: str, what: str, adapter: TypeAdapter[Content], depends: object
) -> CacheEntry[Content]:
    """Where something about a model is kept.

    Args:
        where: The folder.
        model: What the recipe calls the model.
        what: Is kept, in the plural.
        adapter: Of its type.
        depends: Plain data that says what it depends on: files, tensors, dtypes, options.
    """
    found_by = [__version__, *(version(name) for name in ("mergekit", "transformers"))]
    content = json.dumps([found_by, what, depends], sort_keys=True)
    name = f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.json"
    return CacheEntry(where / name, model, what, adapter)


def _checksum(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
