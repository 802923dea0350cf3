"""The floating-point tensors of a model in a folder, mapped from files of either format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts

if TYPE_CHECKING:
    import torch

_NUMPY_TYPES: Mapping[str, type[numpy.generic]] = {
    "F64": numpy.float64,
    "F32": numpy.float32,
    "F16": numpy.float16,
    "BF16": numpy.uint16,
}
"""Name in safetensors headers -> the type that a file is read as; numpy has no bfloat16."""


@dataclass
class StoredArrays:
    """Maps the tensors of a model.

    Attributes:
        facts: A model in a folder.
    """

    facts: CheckpointFacts
    # One pickled file stays open: it tells where its tensors lie only as a whole.
    _pickled: Path | None = None
    _tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def map(self, name: str) -> NDArray[numpy.generic]:
        """Return a stored floating-point tensor that is not empty; bfloat16 as its bits.

        Raises:
            CheckpointError: Its file is damaged.
        """
        stored = self.facts.tensors[name]
        assert self.facts.folder is not None
        path = self.facts.folder / self.facts.files[name]
        if stored.span is None:
            return self._map_pickled(path, name)
        start, dtype = stored.span[0], _NUMPY_TYPES[stored.dtype]
        return numpy.memmap(path, dtype, "r", offset=start, shape=stored.shape)

    def _map_pickled(self, path: Path, name: str) -> NDArray[numpy.generic]:
        # Imports torch, so only here.
        import torch

        from dppa_mergekit.checkpoints.pickled_header import map_pickled_tensors

        if path != self._pickled:
            self._pickled, self._tensors = path, {}
            self._tensors = map_pickled_tensors(path)
        tensor = self._tensors[name]
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.view(torch.uint16)
        array: NDArray[numpy.generic] = tensor.numpy()
        return array
