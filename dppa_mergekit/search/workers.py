"""A search on several processes, machines or GPUs: Ray actors, each with a bench of its own.

It needs the extra `ray`. A worker that is lost is started anew, and its trial is made again.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dppa_mergekit.errors import DppaError
from dppa_mergekit.recipes import Setting
from dppa_mergekit.scoring.ratios import Items, Scores
from dppa_mergekit.search.factor_trials import Bench, Proposal, Trial

if TYPE_CHECKING:
    from ray.actor import ActorHandle

Result = TypeVar("Result")

ANSWER_SECONDS = 5
"""How long a cluster may take to answer."""

RESTARTS = 3
"""How often one worker may be lost before the search ends."""


@dataclass(frozen=True)
class Cluster:
    """Where workers run.

    Attributes:
        workers: How many there are.
        address: Of a Ray cluster that runs already; None to start one on this machine.
    """

    workers: int
    address: str | None = None


class Worker:
    """What runs in an actor: a bench, made there."""

    def __init__(self, make: Callable[[], Bench], folder: str) -> None:
        """Make it, with paths from a folder on, which is the driver's."""
        os.chdir(folder)
        self._bench = make()

    def dense(self, items: Items) -> Scores:
        """See `Bench`."""
        return self._bench.dense(items)

    def parameters(self) -> list[str]:
        """See `Bench`."""
        return self._bench.parameters()

    def score(self, trial: Trial) -> Scores:
        """See `Bench`."""
        return self._bench.score(*trial)

    def distill(self, items: Items, low: float, high: float, seed: int) -> Proposal:
        """See `Bench`."""
        return self._bench.distill(items, low, high, seed)


@dataclass(frozen=True)
class WorkersBench:
    """A bench whose trials are shared among workers."""

    workers: Sequence[ActorHandle]

    def dense(self, items: Items) -> Scores:
        """The scores of the fine-tuned model as it is."""
        found: Scores = _got(lambda: self.workers[0].dense.remote(items))
        return found

    def parameters(self) -> list[str]:
        """What is tuned."""
        found: list[str] = _got(lambda: self.workers[0].parameters.remote())
        return found

    def score(self, factors: Mapping[str, Setting], items: Items) -> Scores:
        """The scores of one trial."""
        return next(self.score_all([(factors, items)]))

    def score_all(self, trials: Sequence[Trial]) -> Iterator[Scores]:
        """The scores of several trials, in order, made at the same time."""
        from ray.exceptions import RayError
        from ray.util import ActorPool

        pool = ActorPool(list(self.workers))
        found = pool.map(lambda worker, trial: worker.score.remote(trial), trials)
        while True:
            try:
                scores: Scores = next(found)
            except StopIteration:
                return
            except RayError as error:
                raise _ended(error) from error
            yield scores

    def distill(self, items: Items, low: float, high: float, seed: int) -> Proposal:
        """The factors by which the pruned model is likest to the fine-tuned one."""
        found: Proposal = _got(lambda: self.workers[0].distill.remote(items, low, high, seed))
        return found


@contextmanager
def connect(cluster: Cluster, gpus: int = 0) -> Iterator[None]:
    """While open, workers can be started.

    Args:
        cluster: Where they run.
        gpus: How many they need.

    Raises:
        DppaError: Ray is not installed, there is no cluster at the address, or this machine has
            fewer GPUs. A running cluster may get more of them.
    """
    try:
        import ray
    except ImportError as error:
        raise DppaError("Several workers need Ray: pip install 'dppa-mergekit[ray]'.") from error
    _refuse_silent(cluster.address)
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False)
    # Whatever Ray raises for an address where none answers.
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DppaError(f"No Ray cluster at {cluster.address} ({reason}).") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)  # Ray's ends a process without a word
    try:
        there = int(ray.cluster_resources().get("GPU", 0))
        if cluster.address is None and gpus > there:
            raise DppaError(
                f"{gpus} workers on cuda need {gpus} GPUs, one each, and this machine has {there}: "
                f"name fewer workers."
            )
        yield
    finally:
        ray.shutdown()


def _refuse_silent(address: str | None) -> None:
    """Refuse an address where nothing answers, which Ray itself waits minutes for."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise DppaError(f"No Ray cluster at {address} ({error}).") from error


@contextmanager
def distribute(
    make: Callable[[], Bench], workers: int, of_all: int, gpu: bool
) -> Iterator[WorkersBench]:
    """The bench of some workers, which end with it.

    Args:
        make: Makes a bench, in the worker.
        workers: How many.
        of_all: How many there are at most at the same time, these included: they share the
            processors.
        gpu: Whether each has a GPU of its own.
    """
    import ray

    processors = ray.cluster_resources().get("CPU", 1.0) / of_all
    actor = ray.remote(Worker).options(
        num_cpus=int(processors) if processors >= 1 else processors,
        num_gpus=1 if gpu else 0,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    )
    started = [actor.remote(make, os.getcwd()) for _ in range(workers)]
    try:
        yield WorkersBench(started)
    finally:
        for worker in started:
            ray.kill(worker)


def _got(call: Callable[[], Result]) -> Result:
    """What a worker's method returns, given what begins it."""
    import ray
    from ray.exceptions import RayError

    try:
        found: Result = ray.get(call())
        return found
    except RayError as error:
        raise _ended(error) from error


def _ended(error: Exception) -> DppaError:
    """What ended a worker: its own error, if it is one of this package's."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, DppaError):
        return cause
    lines = str(cause or error).strip().splitlines()
    return DppaError(f"A worker ended: {lines[-1] if lines else type(error).__name__}")
