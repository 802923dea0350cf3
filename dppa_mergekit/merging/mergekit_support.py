"""Whether the installed mergekit has what this package leans on.

mergekit replaced its whole method API in a patch release, from 0.1.4 to 0.1.5. Beside the API, this
package leans on functions inside of mergekit, which `mergekit_hooks` knows by name.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from dppa_mergekit.errors import DppaError
from dppa_mergekit.version import SUPPORTED_MERGEKIT

LEANED_ON = {
    "mergekit.merge_methods": ("get", "register", "registered_methods"),
    "mergekit.merge_methods.base": (
        "BasePolicy",
        "BatchOptions",
        "GroupMergeMethod",
        "InputContract",
        "MergeMethod.__call__",
        "MergeMethodSpec",
        "ParameterSpec",
        "TensorEntry",
        "TensorGroup",
    ),
    "mergekit.merge_methods.dtype": ("align_dtype",),
    "mergekit.merge_methods.task_adapter": (
        "ExecuteMergeMethodTask.execute",
        "ExecuteMergeMethodTask.validate_configured_inputs",
    ),
}
"""Module of mergekit -> what this package uses of it at load, or waits for the call of."""


class UnsupportedMergekitError(DppaError):
    """The installed mergekit is of another release than those that are supported."""


def check_mergekit() -> None:
    """Refuse a mergekit that lacks what this package leans on.

    Raises:
        UnsupportedMergekitError: Something is not there.
    """
    for module, names in LEANED_ON.items():
        try:
            found = import_module(module)
        except ImportError as error:
            raise _refusal(module) from error
        for name in names:
            holder: object = found
            for part in name.split("."):
                if not hasattr(holder, part):
                    raise _refusal(f"{module}.{name}")
                holder = getattr(holder, part)


def _refusal(lacks: str) -> UnsupportedMergekitError:
    try:
        installed = version("mergekit")
    except PackageNotFoundError:
        installed = "of unknown version"
    return UnsupportedMergekitError(
        f"dppa-mergekit works with mergekit {SUPPORTED_MERGEKIT}; the installed one is {installed} "
        f"and has no {lacks}: pip install 'mergekit{SUPPORTED_MERGEKIT}'."
    )
