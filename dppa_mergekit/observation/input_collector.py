"""The second moments of the inputs of a model's linears, kept once for linears that share them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

import torch

from dppa_mergekit.errors import DppaError
from dppa_mergekit.moments.activations_file import ObservedInputs, ObservedLinear
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.observation.moment_sketch import MomentSketch
from dppa_mergekit.tensor_names import Linear

_Memory: TypeAlias = tuple[int, tuple[int, ...], tuple[int, ...], int]
"""Address, shape, strides and version of a tensor: equal for two that are the same."""

RECENT = 8
"""Inputs that are kept alive, so that no other tensor can take their memory."""


class InputCollector:
    """Collects the inputs of linears, product by product.

    Linears whose inputs are one tensor, such as Q, K and V, share one sketch. Whether they do is
    seen when they are first called.
    """

    def __init__(self, rank: int) -> None:
        """Begin with no inputs.

        Args:
            rank: The largest rank of the moments.
        """
        self._rank = rank
        self._sketches: dict[Linear, MomentSketch] = {}
        self._first: dict[Linear, Linear] = {}
        self._linears: dict[Linear, ObservedLinear] = {}
        self._recent: deque[tuple[_Memory, torch.Tensor, Linear]] = deque(maxlen=RECENT)

    def take(self, linear: Linear, inputs_first: bool, vectors: torch.Tensor) -> None:
        """Take the inputs of one product.

        Args:
            linear: The linear.
            inputs_first: Whether it is stored as (inputs, outputs).
            vectors: (number, inputs).

        Raises:
            DppaError: The linear shared its inputs with another one, and no longer does.
        """
        memory = _memory(vectors)
        sharing = next((first for known, _, first in self._recent if known == memory), None)
        if not bool((vectors != 0).any()):
            # Some experts get rows of zeros for tokens that are not theirs.
            return
        if linear not in self._first:
            self._first[linear] = linear if sharing is None else sharing
            self._linears[linear] = ObservedLinear(
                tensor=linear.tensor, expert=linear.expert, inputs_first=inputs_first
            )
        first = self._first[linear]
        if first != linear:
            if sharing != first:
                raise DppaError(
                    f"{linear.tensor} had the inputs of {first.tensor} at first and has others "
                    f"now; inputs that change so cannot be observed."
                )
            return
        if linear not in self._sketches:
            self._sketches[linear] = MomentSketch(vectors.shape[1], self._rank, vectors.device)
        self._sketches[linear].add(vectors)
        self._recent.append((memory, vectors, linear))

    def inputs(self) -> list[ObservedInputs]:
        """Return the inputs that were observed, each with the linears that share it."""
        return [
            ObservedInputs(
                linears=tuple(
                    self._linears[linear] for linear, of in self._first.items() if of == first
                ),
                tokens=sketch.vectors,
            )
            for first, sketch in self._sketches.items()
        ]

    def moments(self) -> Sequence[SecondMoment]:
        """Return the moments of each of `inputs`."""
        return [sketch.moment() for sketch in self._sketches.values()]

    def tensors(self) -> set[str]:
        """Return the names of the tensors of which a linear was called."""
        return {linear.tensor for linear in self._first}


def _memory(tensor: torch.Tensor) -> _Memory:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor._version
