"""Matrix products, and factorisations, whose sums do not depend on the number of threads.

A product is cut into pieces of a fixed number of rows. One thread computes a piece by itself, so
the order of its sums is the same whatever the other threads do.
"""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from dppa_mergekit.deltas.threads import share

Result = TypeVar("Result")

ROWS = 128
"""Rows of a piece on a CPU."""


def pieces(rows: int, device: torch.device) -> list[tuple[int, int]]:
    """Return (start, stop) of every piece of a number of rows."""
    length = ROWS if device.type == "cpu" else max(1, rows)
    return [(start, min(start + length, rows)) for start in range(0, rows, length)]


def multiply_lower(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the new tensor left @ right where that is symmetric; above the diagonal, zeros.

    Args:
        left: (size, inner).
        right: (inner, size).
    """
    product = left.new_zeros(len(left), len(left))

    def work(shared: Iterator[tuple[int, int]]) -> None:
        for start, stop in shared:
            product[start:stop, :stop] = left[start:stop] @ right[:, :stop]

    share(work, pieces(len(left), left.device), left.device, summing=True)
    return product.tril_()


def solve(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the new tensor A^-1 right, (size, columns), by columns.

    Args:
        factor: (size, size) the lower Cholesky factor of A.
        right: (size, columns).
    """
    solution = torch.empty_like(right)

    def work(shared: Iterator[tuple[int, int]]) -> None:
        for start, stop in shared:
            solution[:, start:stop] = torch.cholesky_solve(right[:, start:stop], factor)

    share(work, pieces(right.shape[1], right.device), right.device, summing=True)
    return solution


def alone(compute: Callable[[], Result], device: torch.device) -> Result:
    """Return the result of a function, computed by one thread.

    Args:
        compute: A function of tensors on `device`.
        device: The device.
    """
    results = share(lambda items: [compute() for _ in items], [None], device, summing=True)
    return results[0][0]
