"""The thresholds of a merge's kept sets, kept for the next merge of the same files.

A kept set depends on the delta and on its count alone, and is two numbers. So the next merge at
the same densities need not search for thresholds again, whatever its weights. With other factors, a
linear is searched again if a boundary between its partitions has a count that was not stored.
"""

import threading
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from dppa_mergekit.deltas.keys import Cut, MagnitudeKeys
from dppa_mergekit.sparsification.pruning import Pruned, Pruning, prune
from dppa_mergekit.storage.cache import CacheEntry
from dppa_mergekit.tensor_names import Linear


@dataclass(frozen=True)
class KeptSets:
    """The kept sets of one linear.

    Attributes:
        linear: Its tensor and expert.
        dtype: Of the delta, whose bits are the keys.
        counts: How many elements they hold.
        cuts: (counts,) the sets.
    """

    linear: Linear
    dtype: str
    counts: tuple[int, ...]
    cuts: tuple[Cut, ...]


KeptSetEntries: TypeAlias = Mapping[Hashable, CacheEntry[tuple[KeptSets, ...]]]
"""Model -> the cache entry of its kept sets."""


class Thresholds:
    """The kept sets of all linears of one merge's models; several devices may ask at once."""

    def __init__(
        self, entries: KeptSetEntries | None = None, linears: Collection[Linear] = frozenset()
    ) -> None:
        """Begin with the kept sets of an earlier merge.

        Args:
            entries: Where kept sets are cached; None to cache nothing.
            linears: All linears of the merge; once they are pruned, their kept sets are cached.
        """
        self._entries = entries or {}
        self._missing = set(linears)
        self._lock = threading.Lock()
        self._before = {
            model: {kept_sets.linear: kept_sets for kept_sets in entry.read() or ()}
            for model, entry in self._entries.items()
        }
        self._used: dict[Hashable, dict[Linear, KeptSets]] = {model: {} for model in self._entries}

    def prune(self, linear: Linear, prunings: Mapping[Hashable, Pruning]) -> dict[Hashable, Pruned]:
        """Model -> its pruned delta, of one linear or dense tensor."""
        known = {model: self._known(model, linear, pruning) for model, pruning in prunings.items()}
        found = iter(prune([prunings[model] for model, cuts in known.items() if cuts is None]))
        of_models = {
            model: next(found) if cuts is None else Pruned(prunings[model], cuts)
            for model, cuts in known.items()
        }
        with self._lock:
            for model, pruned in of_models.items():
                if model in self._used and isinstance(pruned.pruning.keys, MagnitudeKeys):
                    dtype, counts = str(pruned.pruning.delta.dtype), pruned.pruning.counts
                    self._used[model][linear] = KeptSets(linear, dtype, counts, pruned.cuts)
            if linear in self._missing:
                self._missing.remove(linear)
                if not self._missing:
                    self._keep()
        return of_models

    def _known(self, model: Hashable, linear: Linear, pruning: Pruning) -> tuple[Cut, ...] | None:
        before = self._before.get(model, {}).get(linear)
        if before is None or not isinstance(pruning.keys, MagnitudeKeys):
            return None
        cuts = dict(zip(before.counts, before.cuts, strict=True))
        if before.dtype != str(pruning.delta.dtype) or not cuts.keys() >= set(pruning.counts):
            return None
        return tuple(cuts[count] for count in pruning.counts)

    def _keep(self) -> None:
        for model, used in self._used.items():
            if used and used != self._before[model]:
                self._entries[model].write(tuple(used.values()))
