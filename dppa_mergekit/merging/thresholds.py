"""Kept sets of linears that a merge finds, and of what an earlier merge of the same files found.

A kept set depends on the delta and on its count alone, and is two numbers. So the next merge at
the same densities, of other weights too, need not look for thresholds again; nor of other factors,
unless two partitions of one factor now have different ones, and a boundary between them.
"""

import threading
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from dppa_mergekit.deltas.keys import Cut, MagnitudeKeys
from dppa_mergekit.sparsification.amplification import Pruned, Pruning, prune
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


KeptPlaces: TypeAlias = Mapping[Hashable, CacheEntry[tuple[KeptSets, ...]]]
"""Model -> where its kept sets may be, from an earlier merge, or are kept."""


class Thresholds:
    """The kept sets of all linears of one merge's models; several devices may ask at once."""

    def __init__(
        self, places: KeptPlaces | None = None, linears: Collection[Linear] = frozenset()
    ) -> None:
        """Begin with what an earlier merge found.

        Args:
            places: None where nothing is kept.
            linears: All of the merge; once they are pruned, what was found is kept.
        """
        self._places = places or {}
        self._missing = set(linears)
        self._lock = threading.Lock()
        self._before = {
            model: {each.linear: each for each in place.read() or ()}
            for model, place in self._places.items()
        }
        self._used: dict[Hashable, dict[Linear, KeptSets]] = {model: {} for model in self._places}

    def prune(self, linear: Linear, prunings: Mapping[Hashable, Pruning]) -> list[Pruned]:
        """What every model's pruning of one linear, or of a dense tensor, keeps."""
        known = {model: self._known(model, linear, each) for model, each in prunings.items()}
        found = iter(prune([prunings[model] for model, cuts in known.items() if cuts is None]))
        pruned = {
            model: next(found) if cuts is None else Pruned(prunings[model], cuts)
            for model, cuts in known.items()
        }
        with self._lock:
            for model, each in pruned.items():
                if model in self._used and isinstance(each.pruning.keys, MagnitudeKeys):
                    dtype, counts = str(each.pruning.delta.dtype), each.pruning.counts
                    self._used[model][linear] = KeptSets(linear, dtype, counts, each.cuts)
            if linear in self._missing:
                self._missing.remove(linear)
                if not self._missing:
                    self._keep()
        return list(pruned.values())

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
                self._places[model].write(tuple(used.values()))
