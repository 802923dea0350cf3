"""Several threads over one tensor: each takes chunk after chunk until none is left.

torch's own threads split every operation and wait for each other after each; on chunks that fit
the cache that costs more than it gains, and what NumPy computes they do not split at all. Here
every thread does whole chunks, with torch's threads switched off inside. What a chunk yields
depends on the chunk alone, so results are the same with any number of threads.
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
"""Process and number of threads -> pool; a fork has none of its parent's threads."""


def share(
    work: Callable[[Iterator[Item]], Result], items: Sequence[Item], device: torch.device
) -> list[Result]:
    """Let as many threads as torch uses work through the items; what each returns, in any order.

    Args:
        work: Called once a thread, with an iterator over the items that this thread takes.
        items: Chunks of tensors on `device`.
        device: Other devices than the CPU have one thread: their kernels are parallel already.
    """
    threads = min(torch.get_num_threads(), len(items)) if device.type == "cpu" else 1
    # Of one iterator over a sequence, several threads may take the next item.
    supply = iter(items)
    if threads < 2:
        return [work(supply)]
    futures = [_pool(torch.get_num_threads()).submit(work, supply) for _ in range(threads)]
    return [future.result() for future in futures]


def in_order(found: Iterable[Iterable[tuple[int, Result]]]) -> list[Result]:
    """What several threads found at (place, result), ordered by place."""
    return [
        result for _, result in sorted(chain.from_iterable(found), key=lambda placed: placed[0])
    ]


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
    """Keep torch from splitting this thread's operations among others.

    torch's number of threads is what a thread sets, and of all that start later, what was set
    last; a thread takes it up for good when it first asks.
    """
    torch.set_num_threads(1)
    torch.get_num_threads()
