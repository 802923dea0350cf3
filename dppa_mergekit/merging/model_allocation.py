"""The kept counts of every linear of every model of one merge, measured on first need.

Several devices may merge tensors of one model at the same time; the statistics are taken once,
under a lock.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

from dppa_mergekit.allocation.density import DynamicPruning
from dppa_mergekit.allocation.measurement import Progress, TensorSource, measure
from dppa_mergekit.allocation.statistics import (
    LinearStatistics,
    ModelStatistics,
    Multiples,
    Statistics,
)
from dppa_mergekit.storage.cache import CacheEntry
from dppa_mergekit.tensor_names import Linear

LOG = logging.getLogger(__name__)


class Allocation:
    """Statistics of one merge's models, and what density allocation makes of them.

    Args:
        sources: Every tensor of the merge.
        densities: Model -> tensor name -> the density that the recipe gives it.
        multiples: What significance is needed at; none for uniform allocation alone.
        progress: Opens a progress bar over a number of tensors.
        cached: Model -> where its statistics may be, from an earlier merge, or are kept.
    """

    def __init__(
        self,
        sources: Sequence[TensorSource],
        densities: Mapping[Hashable, Mapping[str, float]],
        multiples: Iterable[Multiples],
        progress: Callable[[int], AbstractContextManager[Progress]] | None = None,
        cached: Mapping[Hashable, CacheEntry[tuple[ModelStatistics, ...]]] | None = None,
    ) -> None:
        self._sources = sources
        self._densities = densities
        self._multiples = tuple(multiples)
        self._progress = progress
        self._cached = cached or {}
        self._lock = threading.Lock()
        self._statistics: dict[Hashable, Statistics] | None = None
        self._of_linears: dict[
            tuple[Hashable, Multiples | None], dict[Linear, LinearStatistics]
        ] = {}
        self._kept: dict[tuple[Hashable, DynamicPruning, float], dict[Linear, int]] = {}

    def prepare(self) -> None:
        """Take the statistics, if that has not been done, and warn of what they show.

        Raises:
            CheckpointError: See `measure`.
        """
        with self._lock:
            if self._statistics is None:
                begun = time.perf_counter()
                self._statistics = self._taken()
                LOG.info("Delta statistics: %.2f s.", time.perf_counter() - begun)
                for model, taken in self._statistics.items():
                    self._warn(model, taken[None])

    def _taken(self) -> dict[Hashable, Statistics]:
        """The statistics of every model: from an earlier merge, or measured and kept."""
        found = {model: place.read() for model, place in self._cached.items()}
        known: dict[Hashable, Statistics] = {
            model: {each.multiples: each for each in statistics}
            for model, statistics in found.items()
            if statistics
        }
        missing = [model for model in self._densities if model not in known]
        measured = (
            measure(self._sources, missing, self._multiples, self._progress) if missing else {}
        )
        for model, statistics in measured.items():
            if model in self._cached:
                self._cached[model].write(tuple(statistics.values()))
        return {model: known.get(model) or measured[model] for model in self._densities}

    @property
    def linears(self) -> set[Linear]:
        """All linears of the models."""
        self.prepare()
        assert self._statistics is not None
        return {
            each.linear
            for statistics in self._statistics.values()
            for each in statistics[None].linears
        }

    def statistics(
        self, model: Hashable, multiples: Multiples | None
    ) -> Mapping[Linear, LinearStatistics]:
        """The statistics of a model's linears, with tails at these multiples; None for no tails."""
        self.prepare()
        with self._lock:
            key = (model, multiples)
            if key not in self._of_linears:
                assert self._statistics is not None
                linears = self._statistics[model][multiples].linears
                self._of_linears[key] = {each.linear: each for each in linears}
            return self._of_linears[key]

    def kept(self, model: Hashable, pruning: DynamicPruning, density: float) -> dict[Linear, int]:
        """The kept count of every linear of a model at one density."""
        self.prepare()
        with self._lock:
            key = (model, pruning, density)
            if key not in self._kept:
                assert self._statistics is not None
                statistics = self._statistics[model][pruning.multiples]
                self._kept[key] = pruning.allocate(statistics, density)
            return self._kept[key]

    def _warn(self, model: Hashable, statistics: ModelStatistics) -> None:
        if statistics.zero:
            LOG.warning("%s: its delta is zero everywhere; it adds nothing to the base.", model)
            return
        total = sum(each.numel for each in statistics.linears)
        asked = sum(
            each.numel * self._densities[model].get(each.linear.tensor, 0.0)
            for each in statistics.linears
        )
        if total and statistics.nonzero_share < asked / total:
            LOG.warning(
                "%s: only %.1f %% of its linears' deltas are non-zero, fewer than density %.3g "
                "asks for; where too few are left, all are kept.",
                model,
                100 * statistics.nonzero_share,
                asked / total,
            )
