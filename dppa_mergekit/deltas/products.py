"""Matrix products, and factorisations, whose sums do not depend on the number of threads.

A product is cut into pieces of a fixed number of rows. One thread computes a piece by itself, so
the order of its sums is the same whatever the other threads do.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from dppa_mergekit.deltas.threads import in_order, share

Item = TypeVar("Item")
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
    """Return the new tensor A^-1 right, (size, columns).

    A^-1 itself is computed first: its product with many columns takes half the time of solving for
    them.

    Args:
        factor: (size, size) the lower Cholesky factor of A.
        right: (size, columns).
    """
    inverse = compute_in_one_thread(lambda: torch.cholesky_inverse(factor), factor.device)
    solution = torch.empty_like(right)

    def work(shared: Iterator[tuple[int, int]]) -> None:
        for start, stop in shared:
            torch.mm(inverse[start:stop], right, out=solution[start:stop])

    share(work, pieces(len(right), right.device), right.device, summing=True)
    return solution


def compute_in_one_thread(compute: Callable[[], Result], device: torch.device) -> Result:
    """Return the result of a function, computed by one thread.

    Args:
        compute: A function of tensors on `device`.
        device: The device.
    """
    return map_in_single_threads(lambda _: compute(), [None], device)[0]


def map_in_single_threads(
    compute: Callable[[Item], Result], items: Sequence[Item], device: torch.device
) -> list[Result]:
    """Return the results of a function of several items, each computed by one thread.

    Args:
        compute: A function of an item and of tensors on `device`.
        items: At least one.
        device: The device.
    """

    def work(shared: Iterator[tuple[int, Item]]) -> list[tuple[int, Result]]:
        return [(number, compute(item)) for number, item in shared]

    return in_order(share(work, list(enumerate(items)), device, summing=True))
