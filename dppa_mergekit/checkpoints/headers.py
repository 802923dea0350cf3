"""Headers of checkpoints: what can be refused before a single tensor is read.

The one place that looks into checkpoint files beside mergekit's loaders. A header check of three
models of six shards takes a millisecond.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import safetensors
import torch

from dppa_mergekit.errors import CheckpointError, first_line

FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
"""As safetensors names them: what can be merged."""

PLAIN_DTYPES = FLOATING | {"I64", "BOOL"}
"""Dtypes, in the names of safetensors headers, that hold values themselves: floats, and the
integers of buffers. All others need scales that a merge does not see."""

_TORCH_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Header:
    """What is known of a stored tensor without reading it.

    Attributes:
        dtype: As safetensors names it.
        shape: Of the tensor.
        span: Where its bytes begin in the file, and how many there are; None where unknown.
    """

    dtype: str
    shape: tuple[int, ...]
    span: tuple[int, int] | None = None


class TensorIndex(Protocol):
    """What is used of mergekit's ShardedTensorIndex (mergekit/io/lazy_tensor_loader.py, 0.1.5)."""

    base_path: str
    tensor_paths: Mapping[str, str]


@dataclass
class Checkpoint:
    """The files of one model.

    Attributes:
        model: What the recipe calls it.
        index: Where each tensor lies.
    """

    model: str
    index: TensorIndex
    _headers: dict[str, dict[str, Header]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse an index that points outside the model's folder; links inside it are fine."""
        for shard in sorted(set(self.index.tensor_paths.values())):
            parts = Path(shard).parts
            if Path(shard).is_absolute() or ".." in parts:
                raise CheckpointError(
                    f"{self.model}: the shard index points outside the model's folder, to {shard}."
                )

    def stored_name(self, names: Iterable[str]) -> str | None:
        """The first of the names, aliases included, under which the tensor is stored."""
        return next((name for name in names if name in self.index.tensor_paths), None)

    def shard_of(self, stored: str) -> str:
        """The file that holds a tensor, relative to the model's folder."""
        return self.index.tensor_paths[stored]

    def stored(self) -> list[str]:
        """The names of all stored tensors."""
        return list(self.index.tensor_paths)

    def header(self, stored: str) -> Header:
        """The header of a stored tensor.

        Raises:
            CheckpointError: Its shard is missing, truncated or damaged, or does not hold it.
        """
        shard = self.shard_of(stored)
        if shard not in self._headers:
            self._headers[shard] = _read_headers(Path(self.index.base_path) / shard, self.model)
        headers = self._headers[shard]
        if stored not in headers:
            raise CheckpointError(
                f"{self.model}: {shard} does not hold tensor {stored}, which the index puts there."
            )
        return headers[stored]

    def read_ahead(self, stored: str) -> None:
        """Let the system bring a tensor into its page cache, while the caller does other work."""
        span = self.header(stored).span
        if span is None or not hasattr(os, "posix_fadvise"):
            return
        path = Path(self.index.base_path) / self.shard_of(stored)
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), *span, os.POSIX_FADV_WILLNEED)

    def fingerprint(self) -> list[object]:
        """Plain data that differs between two checkpoints: of names, times, headers and samples.

        Modification times alone would not do: unpacking and copying may set them all alike.
        """
        return [self.content(), [_state(path) for path in self._files()]]

    def content(self) -> list[object]:
        """The same without times: of a copy it is the same, unless what no page shows differs."""
        return [
            sorted(self.index.tensor_paths.items()),
            [_content(path) for path in self._files()],
        ]

    def _files(self) -> list[Path]:
        folder = Path(self.index.base_path)
        names = sorted({*self.index.tensor_paths.values(), "config.json"})
        return [folder / name for name in names if (folder / name).exists()]


PROBES = 16
"""Pages of a file's content that its fingerprint reads, where it is not known where tensors are."""

PAGE = 4096


def _state(path: Path) -> list[object]:
    """The time of a file; of a hub's cache, also revision and blob."""
    hub = [path.parent.name, path.resolve().name] if path.parent.parent.name == "snapshots" else []
    return [path.stat().st_mtime_ns, *hub]


def _content(path: Path) -> list[object]:
    """Name, size, and a hash of header and probes.

    A page is read in the middle of every tensor: fine-tuning may have moved any of them alone.
    """
    digest, size_of_file = hashlib.sha256(), path.stat().st_size
    is_safetensors = path.suffix.lower() == ".safetensors"
    places = [(size_of_file * probe // PROBES, PAGE) for probe in range(PROBES)]
    if is_safetensors:
        with suppress(ValueError):  # of a damaged file, which is refused when it is read
            places = [
                (start + max(0, size - PAGE) // 2, min(size, PAGE))
                for start, size in _spans(path).values()
            ]
    with path.open("rb") as file:
        digest.update(_header_bytes(file, is_safetensors))
        for start, size in places:
            file.seek(start)
            digest.update(file.read(size))
    return [path.name, size_of_file, digest.hexdigest()]


def _header_bytes(file: BinaryIO, is_safetensors: bool) -> bytes:
    if not is_safetensors:
        return file.read(PAGE)
    size = file.read(8)
    return size + file.read(int.from_bytes(size, "little"))


def _read_headers(path: Path, model: str) -> dict[str, Header]:
    if not path.exists():
        raise CheckpointError(f"{model}: the file {path} is missing.")
    try:
        if path.suffix.lower() == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as shard:
                slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118
                spans = _spans(path)
                return {
                    name: Header(each.get_dtype(), tuple(each.get_shape()), spans[name])
                    for name, each in slices.items()
                }
        stored = torch.load(path, map_location="meta", weights_only=True)
        stored = stored.get("state_dict", stored)
        return {
            name: Header(
                _TORCH_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.").upper()),
                tuple(tensor.shape),
            )
            for name, tensor in stored.items()
            if isinstance(tensor, torch.Tensor)
        }
    # torch.load raises many kinds for a damaged file: RuntimeError, EOFError, UnpicklingError.
    except Exception as error:
        raise CheckpointError(
            f"{model}: the file {path} is truncated or damaged ({first_line(error)})."
        ) from error


def _spans(path: Path) -> dict[str, tuple[int, int]]:
    """Name -> start and length of a tensor's bytes, of a safetensors file that is sound."""
    with path.open("rb") as file:
        header = _header_bytes(file, is_safetensors=True)
    described = json.loads(header[8:])
    described.pop("__metadata__", None)
    spans = {name: each["data_offsets"] for name, each in described.items()}
    return {name: (len(header) + start, end - start) for name, (start, end) in spans.items()}
