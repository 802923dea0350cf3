"""DPPA for mergekit: dynamic pruning and partition amplification (arXiv 2403.02799).

Importing this package imports neither torch nor mergekit; the public names load on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dppa_mergekit.density import DynamicPruning as DynamicPruning
    from dppa_mergekit.errors import DppaError as DppaError
    from dppa_mergekit.measurement import delta_statistics as delta_statistics
    from dppa_mergekit.sparsification import PartitionAmplification as PartitionAmplification
    from dppa_mergekit.statistics import Multiples as Multiples

_HOMES = {
    "DppaError": "dppa_mergekit.errors",
    "DynamicPruning": "dppa_mergekit.density",
    "Multiples": "dppa_mergekit.statistics",
    "PartitionAmplification": "dppa_mergekit.sparsification",
    "delta_statistics": "dppa_mergekit.measurement",
}

__all__ = ["DppaError", "DynamicPruning", "Multiples", "PartitionAmplification", "delta_statistics"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
