"""Headers of a model's checkpoint files: what can be refused before a single tensor is read.

A header check of three models of six shards takes a millisecond. Weights are read by mergekit's
loaders, and by the checks of merged folders and of samples.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import safetensors

from dppa_mergekit.checkpoints.fingerprints import read_state, sample_content
from dppa_mergekit.checkpoints.pickled_header import read_pickled_headers
from dppa_mergekit.checkpoints.safetensors_header import FLOATING as FLOATING
from dppa_mergekit.checkpoints.safetensors_header import PLAIN_DTYPES as PLAIN_DTYPES
from dppa_mergekit.checkpoints.safetensors_header import (
    TWO_LAYOUTS,
    has_two_layouts,
    read_headers,
    refuse_pointer,
)
from dppa_mergekit.checkpoints.safetensors_header import Header as Header
from dppa_mergekit.errors import CheckpointError, first_line


class TensorIndex(Protocol):
    """The used part of mergekit's ShardedTensorIndex (mergekit/io/lazy_tensor_loader.py, 0.1.5)."""

    base_path: str
    tensor_paths: Mapping[str, str]


@dataclass
class Checkpoint:
    """The files of one model.

    Attributes:
        model: The name of the model in messages.
        index: The file of each tensor.
    """

    model: str
    index: TensorIndex
    _headers: dict[str, dict[str, Header]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an index that points outside the folder, or both an index and a single file.

        Links inside the folder are fine.
        """
        if has_two_layouts(Path(self.index.base_path)):
            raise CheckpointError(f"{self.model}: {TWO_LAYOUTS}")
        for shard in sorted(set(self.index.tensor_paths.values())):
            parts = Path(shard).parts
            if Path(shard).is_absolute() or ".." in parts:
                raise CheckpointError(
                    f"{self.model}: the shard index points outside the model's folder, to {shard}."
                )

    def stored_name(self, names: Iterable[str]) -> str | None:
        """Return the first of a tensor's names under which it is stored; None where it is not."""
        return next((name for name in names if name in self.index.tensor_paths), None)

    def shard_of(self, stored: str) -> str:
        """Return the file that holds a tensor, relative to the model's folder."""
        return self.index.tensor_paths[stored]

    def stored(self) -> list[str]:
        """Return the names of all stored tensors."""
        return list(self.index.tensor_paths)

    def header(self, stored: str) -> Header:
        """Return the header of a stored tensor.

        Raises:
            CheckpointError: Its shard is missing, truncated or damaged, or lacks the tensor.
        """
        shard = self.shard_of(stored)
        if shard not in self._headers:
            self._headers[shard] = _read_file(Path(self.index.base_path) / shard, self.model)
        headers = self._headers[shard]
        if stored not in headers:
            raise CheckpointError(
                f"{self.model}: {shard} does not hold tensor {stored}, which the index puts there."
            )
        return headers[stored]

    def read_ahead(self, stored: str) -> None:
        """Ask the system to bring a tensor into the page cache while the caller does other work."""
        span = self.header(stored).span
        if span is None or not hasattr(os, "posix_fadvise"):
            return
        path = Path(self.index.base_path) / self.shard_of(stored)
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), *span, os.POSIX_FADV_WILLNEED)

    def fingerprint(self) -> list[object]:
        """Return plain data of names, times, headers and samples that tells two checkpoints apart.

        Modification times alone do not: unpacking and copying may set all of them alike.
        """
        return [self.content(), [read_state(path) for path in self._files()]]

    def content(self) -> list[object]:
        """Return the fingerprint without times, which a copy shares.

        A difference that lies in none of the sampled pages does not show.
        """
        return [
            sorted(self.index.tensor_paths.items()),
            [sample_content(path) for path in self._files()],
        ]

    def weights_digest(self) -> str:
        """Return a hash of names and samples of the weights, wherever and under what name they lie.

        A difference that lies in none of the sampled pages does not show.
        """
        folder = Path(self.index.base_path)
        samples = [
            sample_content(folder / shard)[1:] for shard in set(self.index.tensor_paths.values())
        ]
        content = [sorted(self.index.tensor_paths), sorted(samples, key=repr)]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def _files(self) -> list[Path]:
        folder = Path(self.index.base_path)
        names = sorted({*self.index.tensor_paths.values(), "config.json"})
        return [folder / name for name in names if (folder / name).exists()]


def _read_file(path: Path, model: str) -> dict[str, Header]:
    """Return the header of every tensor in a file of either format."""
    if not path.exists():
        raise CheckpointError(f"{model}: the file {path} is missing.")
    try:
        if path.suffix.lower() != ".safetensors":
            return read_pickled_headers(path)
        refuse_pointer(path)
        # safetensors itself also refuses gaps and sizes that do not fit the shapes.
        with safetensors.safe_open(path, framework="pt"):
            return read_headers(path)
    except CheckpointError as error:
        raise CheckpointError(f"{model}: {error.message}") from error
    # safetensors raises an error of its own kind, and OSError.
    except Exception as error:
        raise CheckpointError(
            f"{model}: the file {path} is truncated or damaged ({first_line(error)})."
        ) from error
