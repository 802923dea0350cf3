"""Batches of examples in a random order that a seed decides."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def draw_batches(number: int, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield batches of indices without end; every round takes all examples in a new random order.

    Args:
        number: The number of examples, at least 1.
        size: The number of examples in a batch; the last batch of a round may have fewer.
        seed: The seed of the order.

    Yields:
        (size,) int64 indices from 0 to number - 1.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(number, generator=generator)
        yield from (order[start : start + size] for start in range(0, number, size))
