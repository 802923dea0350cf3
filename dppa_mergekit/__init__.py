"""DPPA for mergekit: dynamic pruning and partition amplification (arXiv 2403.02799).

Importing this package imports neither torch nor mergekit; the public names load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from dppa_mergekit.version import __version__ as __version__

if TYPE_CHECKING:
    from dppa_mergekit.allocation.density import DynamicPruning as DynamicPruning
    from dppa_mergekit.allocation.measurement import delta_statistics as delta_statistics
    from dppa_mergekit.allocation.statistics import Multiples as Multiples
    from dppa_mergekit.errors import DppaError as DppaError
    from dppa_mergekit.sparsification.amplification import (
        PartitionAmplification as PartitionAmplification,
    )

_HOMES = {
    "DppaError": "dppa_mergekit.errors",
    "DynamicPruning": "dppa_mergekit.allocation.density",
    "Multiples": "dppa_mergekit.allocation.statistics",
    "PartitionAmplification": "dppa_mergekit.sparsification.amplification",
    "delta_statistics": "dppa_mergekit.allocation.measurement",
}

__all__ = ["DppaError", "DynamicPruning", "Multiples", "PartitionAmplification", "delta_statistics"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
