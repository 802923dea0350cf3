"""The header of a safetensors file: its tensors' dtypes and shapes, and where their bytes lie.

The format (https://github.com/huggingface/safetensors): eight bytes with the length of the header,
little-endian; the header as JSON; the bytes of the tensors. This module imports neither torch nor
safetensors, so that a check starts at once.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from dppa_mergekit.errors import CheckpointError

FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of an element of every dtype that can be merged, by its name in safetensors headers."""

FLOATING = frozenset(FLOAT_BYTES)
"""The dtypes that can be merged."""

PLAIN_DTYPES = FLOATING | {"I64", "BOOL"}
"""Dtypes that hold values themselves: floats, and the integers and booleans of buffers. All others
need scales that a merge does not see."""

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""The file of a checkpoint in one file, and the index of one in shards."""

TWO_LAYOUTS = (
    f"it holds both {SINGLE} and an index of shards: transformers loads the single file, mergekit "
    f"the shards; remove whichever is stale."
)

_LENGTH_BYTES = 8

_POINTER = b"version https://git-lfs"
"""How the file begins that git keeps in place of a large one."""


@dataclass(frozen=True)
class Header:
    """What is known of a stored tensor without reading it.

    Attributes:
        dtype: Its name in safetensors headers, such as BF16.
        shape: The shape of the tensor.
        span: Offset of its first byte in the file, and number of bytes; None where unknown.
    """

    dtype: str
    shape: tuple[int, ...]
    span: tuple[int, int] | None = None


def has_two_layouts(folder: Path) -> bool:
    """Return whether a folder holds a checkpoint in one file and one in shards.

    An index of nothing but the one file is no other layout.
    """
    if not ((folder / SINGLE).exists() and (folder / INDEX).exists()):
        return False
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return set(content["weight_map"].values()) != {SINGLE}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return True


def refuse_pointer(path: Path) -> None:
    """Refuse a file that only points to the weights. Raises CheckpointError."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(
                f"{path} is a pointer of git-LFS, not the weights: git lfs pull, in its folder, "
                f"fetches them."
            )


def read_raw_header(path: Path) -> bytes:
    """Return the header of a safetensors file as it is stored, after the bytes of its length.

    Raises:
        CheckpointError: The file is shorter than its header, or not a safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(_LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        if not 0 < length <= size - _LENGTH_BYTES:
            raise CheckpointError(f"{path} is truncated or damaged (the header is cut off).")
        return prefix + file.read(length)


def read_headers(path: Path) -> dict[str, Header]:
    """Return the header of every tensor in a safetensors file, by name, in the file's order.

    Raises:
        CheckpointError: The file is truncated, a pointer, or not a safetensors file.
    """
    try:
        refuse_pointer(path)
        raw = read_raw_header(path)
        content = json.loads(raw[_LENGTH_BYTES:])
        content.pop("__metadata__", None)
        headers = {}
        last = len(raw)
        for name, described in content.items():
            start, end = (len(raw) + offset for offset in described["data_offsets"])
            headers[name] = Header(
                described["dtype"], tuple(described["shape"]), (start, end - start)
            )
            last = max(last, end)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}).") from error
    if last > (size := path.stat().st_size):
        raise CheckpointError(f"{path} is truncated: {size} of {last} bytes are there.")
    return headers
