"""Rows of the pruned, amplified deltas of one linear, (outputs, inputs), however it is stored."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from dppa_mergekit.deltas.delta import Buffer, Delta, buffers, delta_chunks
from dppa_mergekit.deltas.linear_shape import LinearShape
from dppa_mergekit.sparsification.pruning import Pruned, PrunedChunks, Pruning, materialize

ReadRows: TypeAlias = Callable[[int, int], list[torch.Tensor]]
"""Returns rows [start, stop) of every delta, (rows, inputs); free to change, and valid until the
next call."""


def keep_whole(delta: Delta) -> Pruned:
    """The delta, not pruned."""
    return Pruned(Pruning.keep_all(delta, 1.0), ())


def open_rows(pruned: Sequence[Pruned], shape: LinearShape) -> Callable[[], ReadRows]:
    """A function that opens a reader of rows for one thread.

    Deltas that are stored as (inputs, outputs) are held whole, in their dtype.

    Args:
        pruned: Deltas of one linear, of one base.
        shape: The shape of the linear.
    """
    if shape.inputs_first:
        matrices = [shape.matrix(materialize(one)) for one in pruned]
        return lambda: (
            lambda start, stop: [
                matrix[start:stop].clone(memory_format=torch.contiguous_format)
                for matrix in matrices
            ]
        )
    deltas = [one.pruning.delta for one in pruned]
    dtype, device = deltas[0].dtype, deltas[0].device

    def open_reader() -> ReadRows:
        readers, _ = delta_chunks(deltas)
        kept = buffers(3, dtype, device)
        chunks = [
            PrunedChunks(one, reader, kept) for one, reader in zip(pruned, readers, strict=True)
        ]
        own = [Buffer(dtype, device) for _ in chunks]

        def read(start: int, stop: int) -> list[torch.Tensor]:
            first, last = start * shape.inputs, stop * shape.inputs
            rows = []
            for chunk, buffer in zip(chunks, own, strict=True):
                values = buffer.of(last - first).zero_()
                chunk.add_to(values, 1.0, first, last)
                rows.append(values.view(stop - start, shape.inputs))
            return rows

        return read

    return open_reader
