"""The tensors of a pickled checkpoint (.bin): their dtypes and shapes, and their elements."""

import os
import pickle
import re
import zipfile
from pathlib import Path

import torch

from dppa_mergekit.checkpoints.safetensors_header import Header, refuse_pointer
from dppa_mergekit.errors import CheckpointError, first_line

UNSAFE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""The environment variable that makes PyTorch run the code in every file that it loads."""

_TRUE = ("1", "y", "yes", "true")

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


def read_pickled_headers(path: Path) -> dict[str, Header]:
    """Return dtype and shape of every tensor in a pickled file, by name, in the file's order.

    Raises:
        CheckpointError: The file is truncated, a pointer, or holds more than tensors; or the
            environment would have PyTorch run its code.
    """
    return {
        name: Header(
            _TORCH_NAMES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.").upper()),
            tuple(tensor.shape),
        )
        for name, tensor in _load(path, "meta").items()
    }


def map_pickled_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return every tensor in a pickled file, by name; the file is read as elements are needed.

    A file of PyTorch before 1.6, which is no archive, is read at once.

    Raises:
        CheckpointError: See `read_pickled_headers`.
    """
    return _load(path, "cpu", mmap=zipfile.is_zipfile(path))


def _load(path: Path, device: str, mmap: bool = False) -> dict[str, torch.Tensor]:
    """Return every tensor in a pickled file, by name, on a device.

    Raises:
        CheckpointError: See `read_pickled_headers`.
    """
    refuse_pointer(path)
    if os.environ.get(UNSAFE, "").lower() in _TRUE:
        raise CheckpointError(
            f"{path} is pickled, and {UNSAFE} is set, so PyTorch would run any code in it: unset "
            f"the variable, or convert the file to safetensors."
        )
    try:
        stored = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    # torch.load raises many kinds for a damaged file: RuntimeError, EOFError, ...
    except Exception as error:
        text = str(error).lower()
        if isinstance(error, pickle.UnpicklingError) and re.search("weights[_ ]only", text):
            raise CheckpointError(
                f"{path} holds more than tensors, and PyTorch would have to run its code to load "
                f"it: convert it to safetensors."
            ) from error
        raise CheckpointError(f"{path} is truncated or damaged ({first_line(error)}).") from error
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path} holds no mapping of tensors by name.")
    stored = stored.get("state_dict", stored)
    return {
        name: tensor.detach() for name, tensor in stored.items() if isinstance(tensor, torch.Tensor)
    }
