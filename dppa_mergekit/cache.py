"""Statistics of models measured before: a small file for each fine-tuned model on its base.

The file's name is a hash of all that the statistics depend on, so a file is never out of date: what
has changed has another name. It holds JSON and a checksum. It is written beside its place and moved
there, so that runs at the same time see all of it or nothing. DPPA_MERGEKIT_CACHE moves the folder,
or switches it off.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from platformdirs import user_cache_path
from pydantic import TypeAdapter

from dppa_mergekit.statistics import ModelStatistics, Multiples, Statistics

LOG = logging.getLogger(__name__)

VARIABLE = "DPPA_MERGEKIT_CACHE"
OFF = ("0", "off")

_FILES = TypeAdapter(tuple[ModelStatistics, ...])


def folder() -> Path | None:
    """Where the files lie; None if the cache is switched off."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() in OFF:
        return None
    return Path(chosen).expanduser() if chosen else user_cache_path("dppa-mergekit") / "statistics"


@dataclass(frozen=True)
class Place:
    """Where the statistics of one model are kept.

    Attributes:
        path: The file, which may not exist yet.
        model: What the recipe calls the model.
    """

    path: Path
    model: str

    def read(self) -> Statistics | None:
        """The statistics, if they are there; a damaged file is a warning and counts for none."""
        try:
            checksum, content = self.path.read_text(encoding="utf-8").split("\n", 1)
            if checksum != _checksum(content):
                raise ValueError("its checksum does not fit")
            return {each.multiples: each for each in _FILES.validate_json(content)}
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            LOG.warning(
                "%s: the cached statistics %s are damaged or cannot be read (%s); they are "
                "measured again.",
                self.model,
                self.path,
                str(error).splitlines()[0],
            )
            return None

    def write(self, statistics: Statistics) -> None:
        """Keep the statistics; where that is not possible, a warning says so."""
        content = _FILES.dump_json(tuple(statistics.values())).decode()
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
                "%s: its statistics cannot be kept in %s (%s); %s names another folder, or off.",
                self.model,
                self.path.parent,
                error.strerror,
                VARIABLE,
            )


def place_of(
    where: Path, model: str, fingerprints: Sequence[object], multiples: Sequence[Multiples]
) -> Place:
    """Where the statistics of a model are kept.

    Args:
        where: The folder.
        model: What the recipe calls the model.
        fingerprints: Plain data that says what is measured: files, tensors, dtypes.
        multiples: What the tails are measured at.
    """
    measured_by = [version(name) for name in ("dppa-mergekit", "mergekit", "transformers")]
    pairs = sorted((pair.linear, pair.of_block) for pair in multiples)
    content = json.dumps([measured_by, pairs, fingerprints], sort_keys=True)
    return Place(where / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.json", model)


def _checksum(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()
