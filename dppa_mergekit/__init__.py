"""DPPA for mergekit: dynamic pruning and partition amplification (arXiv 2403.02799).

The merge methods need no import: once the package is installed, mergekit's commands know them.
The names below are for use from Python. They load on first use, so importing this package imports
neither torch nor mergekit.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from dppa_mergekit.version import __version__ as __version__

if TYPE_CHECKING:
    from dppa_mergekit.adamerging.descent import Descent as Descent
    from dppa_mergekit.adamerging.weight_learning import learn_weights as learn_weights
    from dppa_mergekit.allocation.density import DynamicPruning as DynamicPruning
    from dppa_mergekit.allocation.measurement import delta_statistics as delta_statistics
    from dppa_mergekit.allocation.statistics import Multiples as Multiples
    from dppa_mergekit.analysis.analyze import analyze as analyze
    from dppa_mergekit.checks.check import check as check
    from dppa_mergekit.errors import DppaError as DppaError
    from dppa_mergekit.live.placement import Placement as Placement
    from dppa_mergekit.prompts import Prompt as Prompt
    from dppa_mergekit.recipes.recipe import Recipe as Recipe
    from dppa_mergekit.scoring.evaluate import evaluate as evaluate
    from dppa_mergekit.scoring.tasks import TasksFile as TasksFile
    from dppa_mergekit.search.factor_search import search_amplification as search_amplification
    from dppa_mergekit.search.options import Options as Options
    from dppa_mergekit.search.weight_search import search_weights as search_weights
    from dppa_mergekit.sparsification.amplification import (
        PartitionAmplification as PartitionAmplification,
    )
    from dppa_mergekit.sparsification.sparsify import sparsify as sparsify
    from dppa_mergekit.tensor_names import Linear as Linear

_MODULES = {
    "Descent": "adamerging.descent",
    "DppaError": "errors",
    "DynamicPruning": "allocation.density",
    "Linear": "tensor_names",
    "Multiples": "allocation.statistics",
    "Options": "search.options",
    "PartitionAmplification": "sparsification.amplification",
    "Placement": "live.placement",
    "Prompt": "prompts",
    "Recipe": "recipes.recipe",
    "TasksFile": "scoring.tasks",
    "analyze": "analysis.analyze",
    "check": "checks.check",
    "delta_statistics": "allocation.measurement",
    "evaluate": "scoring.evaluate",
    "learn_weights": "adamerging.weight_learning",
    "search_amplification": "search.factor_search",
    "search_weights": "search.weight_search",
    "sparsify": "sparsification.sparsify",
}
"""Public name -> the module that has it."""

__all__ = [
    "Descent",
    "DppaError",
    "DynamicPruning",
    "Linear",
    "Multiples",
    "Options",
    "PartitionAmplification",
    "Placement",
    "Prompt",
    "Recipe",
    "TasksFile",
    "analyze",
    "check",
    "delta_statistics",
    "evaluate",
    "learn_weights",
    "search_amplification",
    "search_weights",
    "sparsify",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return getattr(import_module(f"dppa_mergekit.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
