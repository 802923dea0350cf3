"""Several threads over one tensor: each takes chunk after chunk until none is left.

torch's own threads split every operation and wait for each other after it. On chunks that fit the
cache that costs more than it gains, and torch does not split NumPy's operations at all. Here every
thread computes whole chunks, and torch's own threads are switched off inside. The result of a chunk
depends on the chunk alone, so the results are the same with any number of threads.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_LOCK = threading.Lock()
_POOLS: dict[tuple[int, int], ThreadPoolExecutor] = {}
"""(Process, number of threads) -> pool. A forked process does not inherit its parent's threads."""


def share(
    work: Callable[[Iterator[Item]], Result],
    items: Sequence[Item],
    device: torch.device,
    *,
    summing: bool = False,
) -> list[Result]:
    """Share items among as many threads as torch uses, and return the results of the threads.

    Args:
        work: Called once per thread, with an iterator over the items that this thread takes.
        items: Chunks of tensors on `device`.
        device: For a device other than the CPU there is one thread, since its kernels are parallel
            already.
        summing: Whether an item has sums that torch would split among its threads, such as those of
            a matrix product. Then a single item, too, is computed by one thread alone.

    Returns:
        What each call of `work` returned, in any order.
    """
    threads = min(torch.get_num_threads(), len(items)) if device.type == "cpu" else 1
    # Several threads may take items from one iterator over a sequence.
    supply = iter(items)
    if threads < 2 and not (summing and torch.get_num_threads() > threads > 0):
        return [work(supply)]
    futures = [_pool(torch.get_num_threads()).submit(work, supply) for _ in range(threads)]
    return [future.result() for future in futures]


def in_order(results: Iterable[Iterable[tuple[int, Result]]]) -> list[Result]:
    """Return the results of several threads, given as (start of the chunk, result), by start."""
    return [result for _, result in sorted(chain.from_iterable(results), key=lambda pair: pair[0])]


def _pool(threads: int) -> ThreadPoolExecutor:
    key = (os.getpid(), threads)
    with _LOCK:
        if key not in _POOLS:
            _POOLS[key] = ThreadPoolExecutor(threads, "dppa", _compute_alone)
            started = threading.Barrier(threads)
            for future in [_POOLS[key].submit(started.wait) for _ in range(threads)]:
                future.result()
            torch.set_num_threads(threads)
        return _POOLS[key]


def _compute_alone() -> None:
    """Keep torch from splitting this thread's operations among other threads.

    In torch, a thread that sets the number of threads sets its own, and that of the threads that
    start later. Such a thread adopts the number set last when it first asks for it, and keeps it.
    """
    torch.set_num_threads(1)
    torch.get_num_threads()
