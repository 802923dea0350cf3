"""The second moments of the inputs of a model's linears, kept once for linears that share them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
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

    def __init__(self, model: str, rank: int) -> None:
        """Begin with no inputs.

        Args:
            model: The name of the model, for messages.
            rank: The largest rank of the moments.
        """
        self._model = model
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
            DppaError: An input is not finite; or the linear shared its inputs with another one,
                and no longer does.
        """
        memory = _memory(vectors)
        if not bool(vectors.isfinite().all()):
            raise DppaError(f"{self._model}: the inputs of {linear.tensor} are not finite.")
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
                    f"{self._model}: {linear.tensor} shares its inputs with {first.tensor} for "
                    f"some texts and not for others; such a model cannot be observed."
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

    def moments(self) -> Iterator[SecondMoment]:
        """Yield the moments of each of `inputs`, and forget what they were made from.

        A sketch takes more memory than its moments.
        """
        while self._sketches:
            yield self._sketches.pop(next(iter(self._sketches))).moment()

    def tensors(self) -> set[str]:
        """Return the names of the tensors of which a linear was called."""
        return {linear.tensor for linear in self._first}


def _memory(tensor: torch.Tensor) -> _Memory:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor._version
