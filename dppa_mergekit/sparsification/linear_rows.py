"""Rows of the pruned, amplified deltas of one linear, (outputs, inputs), however it is stored."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from dppa_mergekit.deltas.delta import Delta, buffers
from dppa_mergekit.deltas.linear_shape import LinearShape
from dppa_mergekit.sparsification.pruning import Pruned, Pruning, materialize, open_chunks

ReadRows: TypeAlias = Callable[[int, int], list[torch.Tensor]]
"""Returns rows [start, stop) of every delta, (rows, inputs); free to change, and valid until the
next call."""


def keep_whole(delta: Delta) -> Pruned:
    """The delta, not pruned."""
    return Pruned(Pruning.keep_all(delta, 1.0), ())


def open_rows(
    pruned: Sequence[Pruned], shape: LinearShape, weights: Sequence[float]
) -> Callable[[], ReadRows]:
    """A function that opens a reader of rows for one thread.

    Deltas that are stored as (inputs, outputs) are held whole, in their dtype.

    Args:
        pruned: Deltas of one linear, of one base.
        shape: The shape of the linear.
        weights: Of each delta; multiplies it.
    """
    if shape.inputs_first:
        matrices = [
            shape.matrix(materialize(one, weight))
            for one, weight in zip(pruned, weights, strict=True)
        ]
        return lambda: (
            lambda start, stop: [
                matrix[start:stop].clone(memory_format=torch.contiguous_format)
                for matrix in matrices
            ]
        )
    delta = pruned[0].pruning.delta
    open_writer = open_chunks(pruned, weights)

    def open_reader() -> ReadRows:
        write = open_writer()
        own = buffers(len(pruned), delta.dtype, delta.device)

        def read(start: int, stop: int) -> list[torch.Tensor]:
            first, last = start * shape.inputs, stop * shape.inputs
            values = [buffer.of(last - first) for buffer in own]
            write(first, last, values)
            return [part.view(stop - start, shape.inputs) for part in values]

        return read

    return open_reader
