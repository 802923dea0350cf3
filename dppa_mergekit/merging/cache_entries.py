"""The cache entries of a model's statistics and kept sets, and the data that their keys hash."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from dppa_mergekit.allocation.statistics import ModelStatistics, Multiples
from dppa_mergekit.checkpoints.tensor_loading import reading
from dppa_mergekit.merging.thresholds import KeptSetEntries, KeptSets
from dppa_mergekit.storage.cache import CacheEntry, cache_entry, cache_folder

if TYPE_CHECKING:
    from dppa_mergekit.merging.header_checks import InputHeaders
    from dppa_mergekit.merging.planned_tensor import PlannedTensor

_STATISTICS = TypeAdapter(tuple[ModelStatistics, ...])
_KEPT_SETS = TypeAdapter(tuple[KeptSets, ...])


def delta_dependencies(
    tensors: Sequence[PlannedTensor], headers: InputHeaders
) -> dict[Hashable, list[object]]:
    """Model -> plain data that differs where its deltas do: files, tensors, dtypes.

    Args:
        tensors: All tensors of the merge, by name.
        headers: Headers of the inputs.
    """
    files = {model: checkpoint.fingerprint() for model, checkpoint in headers.checkpoints.items()}
    bases = list(dict.fromkeys(planned.base for planned in tensors))
    of_models: dict[Hashable, list[object]] = {}
    for planned in tensors:
        shared = [
            planned.name,
            planned.vocabulary,
            planned.aligned,
            bases.index(planned.base),
            _is_double(planned, headers),
            reading(planned.loads[planned.base]),
        ]
        for model in planned.models:
            of_models.setdefault(model, []).append([*shared, reading(planned.loads[model])])
    return {
        model: [[files[base] for base in bases], files[model], of_model]
        for model, of_model in of_models.items()
    }


def statistics_entries(
    dependencies: Callable[[], Mapping[Hashable, list[object]]], multiples: Sequence[Multiples]
) -> dict[Hashable, CacheEntry[tuple[ModelStatistics, ...]]]:
    """Model -> the cache entry of its statistics; empty if the cache is off.

    Args:
        dependencies: Returns those of `delta_dependencies`, which sample every file; not called if
            the cache is off.
        multiples: The multiples of the statistics.
    """
    pairs = sorted((pair.linear, pair.of_block) for pair in multiples)
    folder = cache_folder()
    if folder is None:
        return {}
    return {
        model: cache_entry(folder, str(model), "statistics", _STATISTICS, [content, pairs])
        for model, content in dependencies().items()
    }


def kept_set_entries(
    dependencies: Callable[[], Mapping[Hashable, list[object]]],
) -> KeptSetEntries:
    """Model -> the cache entry of its kept sets; see `statistics_entries`."""
    folder = cache_folder()
    if folder is None:
        return {}
    return {
        model: cache_entry(folder, str(model), "kept sets", _KEPT_SETS, content)
        for model, content in dependencies().items()
    }


def _is_double(planned: PlannedTensor, headers: InputHeaders) -> bool:
    """Whether one input of a tensor, and so every delta of it, is in float64."""
    for model, load in planned.loads.items():
        header, cast = headers.header(model, load), (load.dtype or "").removeprefix("torch.")
        if header is not None and (cast == "float64" or (not cast and header.dtype == "F64")):
            return True
    return False
