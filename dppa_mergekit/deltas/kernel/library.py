"""The compiled library, passes.so: its functions, loaded once per process.

Every use of the library starts with `library.load()`. So a test disables the library with

    monkeypatch.setattr(library, "load", lambda: None)

and PyTorch and NumPy do its work, as on a machine without a C compiler.
"""

import ctypes
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeAlias

import torch

from dppa_mergekit.deltas.kernel.source import digest_sources

LOG = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
"""The folder of the library and of its sources."""

BLOCK = 64
"""Elements that the passes compute together, as in passes.c."""

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
"""Dtype of the tensors -> suffix of the functions for it."""

POINTER, INT32, INT64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
UINT32, FLOAT = ctypes.c_uint32, ctypes.c_float

_Result: TypeAlias = type[ctypes.c_int64] | None
_Argument: TypeAlias = (
    type[ctypes.c_void_p]
    | type[ctypes.c_int32]
    | type[ctypes.c_int64]
    | type[ctypes.c_uint32]
    | type[ctypes.c_float]
)

_OF_DTYPE: Mapping[str, tuple[_Result, Sequence[_Argument]]] = {
    "sum_magnitudes": (INT64, [POINTER, POINTER, INT64, FLOAT, POINTER, POINTER, POINTER]),
    "sum_tails": (None, [POINTER, POINTER, INT64, INT64, POINTER, POINTER, POINTER]),
    "find_keys": (INT64, [POINTER, POINTER, INT64, INT64, *[POINTER] * 5]),
    "write_kept": (
        None,
        [POINTER, POINTER, INT64, POINTER, INT64, FLOAT, FLOAT, FLOAT, POINTER],
    ),
    "combine": (INT64, [POINTER, INT64, INT64, POINTER, POINTER, POINTER]),
    "amplify": (None, [POINTER, INT64, INT64, POINTER, POINTER]),
    "products": (None, [POINTER, INT64, INT64, POINTER, POINTER, POINTER, POINTER]),
}
"""Name of a function that exists for each dtype -> the types of its result and arguments."""

_OF_ANY_DTYPE: Mapping[str, tuple[_Result, Sequence[_Argument]]] = {
    "hash_ties": (INT64, [POINTER, POINTER, INT64, INT32, INT64, POINTER]),
    "randomize": (None, [POINTER, INT64, UINT32, UINT32]),
}
"""Name of a function that exists once -> the types of its result and arguments."""


@cache
def load() -> ctypes.CDLL | None:
    """Return the library; None if it is missing, or was not built from the sources beside it."""
    try:
        library = ctypes.CDLL(str(FOLDER / "passes.so"))
        library.passes_source.restype = ctypes.c_char_p
        if library.passes_source() != digest_sources(FOLDER).encode():
            raise OSError("passes.so was not built from the C sources beside it")
        for name, types in _OF_ANY_DTYPE.items():
            _declare(getattr(library, name), *types)
        for name, types in _OF_DTYPE.items():
            for dtype in DTYPES:
                _declare(function_of_dtype(library, name, dtype), *types)
    except (OSError, AttributeError) as error:
        LOG.info("There are no compiled passes, so PyTorch does their work: %s.", error)
        return None
    return library


def function_of_dtype(
    library: ctypes.CDLL, name: str, dtype: torch.dtype
) -> "ctypes._NamedFuncPointer":
    """Return the function of this name for tensors of a dtype."""
    function: ctypes._NamedFuncPointer = getattr(library, f"{name}_{DTYPES[dtype]}")
    return function


def _declare(
    function: "ctypes._NamedFuncPointer", result: _Result, arguments: Sequence[_Argument]
) -> None:
    function.restype, function.argtypes = result, arguments
