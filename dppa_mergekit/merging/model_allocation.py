"""The kept counts of every linear of every model of one merge, measured on first need.

Several devices may merge tensors of one model at the same time; the statistics are taken once,
under a lock.
"""

import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

from dppa_mergekit.allocation.allocations import Allocation
from dppa_mergekit.allocation.measurement import TensorSource, measure
from dppa_mergekit.allocation.statistics import (
    LinearStatistics,
    ModelStatistics,
    Multiples,
    Statistics,
)
from dppa_mergekit.report.progress import Progress
from dppa_mergekit.storage.cache import CacheEntry
from dppa_mergekit.tensor_names import Linear

LOG = logging.getLogger(__name__)


class ModelAllocation:
    """The statistics of one merge's models, and the kept counts that an allocation makes of them.

    Args:
        sources: Every tensor of the merge.
        densities: Model -> tensor name -> the density that the recipe gives it.
        multiples: The multiples at which significance is needed; none for uniform allocation alone.
        is_by_magnitude: Whether the largest deltas are kept, so those of zero last.
        progress: Opens a progress bar over a number of tensors.
        cached: Model -> the cache entry of its statistics.
    """

    def __init__(
        self,
        sources: Sequence[TensorSource],
        densities: Mapping[Hashable, Mapping[str, float]],
        multiples: Iterable[Multiples],
        is_by_magnitude: bool,
        progress: Callable[[int], AbstractContextManager[Progress]] | None = None,
        cached: Mapping[Hashable, CacheEntry[tuple[ModelStatistics, ...]]] | None = None,
    ) -> None:
        self._sources = sources
        self._densities = densities
        self._multiples = tuple(multiples)
        self._is_by_magnitude = is_by_magnitude
        self._progress = progress
        self._cached = cached or {}
        self._lock = threading.Lock()
        self._statistics: dict[Hashable, Statistics] | None = None
        self._of_linears: dict[
            tuple[Hashable, Multiples | None], dict[Linear, LinearStatistics]
        ] = {}
        self._kept: dict[tuple[Hashable, Allocation, float], dict[Linear, int]] = {}

    def prepare(self) -> Mapping[Hashable, Statistics]:
        """Model -> its statistics; the first call takes them, and warns of what they show.

        Raises:
            CheckpointError: See `measure`.
        """
        with self._lock:
            if self._statistics is None:
                begun = time.perf_counter()
                self._statistics = self._take()
                LOG.info("Delta statistics: %.2f s.", time.perf_counter() - begun)
                for model, taken in self._statistics.items():
                    self._warn(model, taken[None])
            return self._statistics

    def _take(self) -> dict[Hashable, Statistics]:
        """The statistics of every model: from the cache, or measured and kept there."""
        found = {model: entry.read() for model, entry in self._cached.items()}
        known: dict[Hashable, Statistics] = {
            model: {at_multiples.multiples: at_multiples for at_multiples in statistics}
            for model, statistics in found.items()
            if statistics
        }
        missing = [model for model in self._densities if model not in known]
        measured = (
            measure(self._sources, missing, self._multiples, self._progress) if missing else {}
        )
        for model, of_model in measured.items():
            if model in self._cached:
                self._cached[model].write(tuple(of_model.values()))
        return {model: known.get(model) or measured[model] for model in self._densities}

    @property
    def linears(self) -> set[Linear]:
        """All linears of the models."""
        return {
            record.linear
            for statistics in self.prepare().values()
            for record in statistics[None].linears
        }

    def statistics(
        self, model: Hashable, multiples: Multiples | None
    ) -> Mapping[Linear, LinearStatistics]:
        """The statistics of a model's linears, with tails at these multiples; None for no tails."""
        of_models = self.prepare()
        with self._lock:
            key = (model, multiples)
            if key not in self._of_linears:
                linears = of_models[model][multiples].linears
                self._of_linears[key] = {record.linear: record for record in linears}
            return self._of_linears[key]

    def kept(self, model: Hashable, allocation: Allocation, density: float) -> dict[Linear, int]:
        """The kept count of every linear of a model at one density."""
        of_models = self.prepare()
        with self._lock:
            key = (model, allocation, density)
            if key not in self._kept:
                statistics = of_models[model][allocation.multiples]
                self._kept[key] = allocation.allocate(statistics, density)
            return self._kept[key]

    def _warn(self, model: Hashable, statistics: ModelStatistics) -> None:
        if statistics.zero:
            LOG.warning("%s: its delta is zero everywhere; it adds nothing to the base.", model)
            return
        if not self._is_by_magnitude:
            return
        total = sum(record.numel for record in statistics.linears)
        asked = sum(
            record.numel * self._densities[model].get(record.linear.tensor, 0.0)
            for record in statistics.linears
        )
        # At density 1 every tensor is kept as it is.
        if total and statistics.nonzero_share < asked / total < 1:
            LOG.warning(
                "%s: only %.1f %% of its linears' deltas are non-zero, but density %.3g asks for "
                "more; a linear with too few non-zero deltas keeps all of them.",
                model,
                100 * statistics.nonzero_share,
                asked / total,
            )
