"""A search on several processes, machines or GPUs: Ray actors, each with trials of its own.

It needs the extra `ray`. A lost worker is started anew, and its trial is made again.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dppa_mergekit.errors import DppaError
from dppa_mergekit.scoring.ratios import Items, Scores
from dppa_mergekit.search.candidates import Proposal
from dppa_mergekit.search.trials import TeachingTrials, Trial, Trials

if TYPE_CHECKING:
    from ray.actor import ActorHandle

Result = TypeVar("Result")

ANSWER_SECONDS = 5
"""Time that a cluster may take to answer."""

RESTARTS = 3
"""Number of times that one worker may be lost before the search ends."""


@dataclass(frozen=True)
class Cluster:
    """Where workers run.

    Attributes:
        workers: Number of workers.
        address: Address of a running Ray cluster; None to start one on this machine.
    """

    workers: int
    address: str | None = None


class Worker:
    """Runs in an actor, and makes its trials there: those of one domain at a time."""

    def __init__(self, make: Callable[[str], Trials], folder: str) -> None:
        """Prepare to make trials.

        Args:
            make: Makes the trials of a domain.
            folder: The working directory of the driver, which relative paths start from.
        """
        os.chdir(folder)
        self._make = make
        self._domain: str | None = None
        self._trials: Trials | None = None

    def _of(self, domain: str) -> Trials:
        """Return the trials of a domain, in place of those of another."""
        if self._trials is None or self._domain != domain:
            self._trials = None  # two models need not fit the memory
            self._domain, self._trials = domain, self._make(domain)
        return self._trials

    def score_fine_tuned(self, domain: str, items: Items) -> Scores:
        """See `Trials`."""
        return self._of(domain).score_fine_tuned(items)

    def parameters(self, domain: str) -> list[str]:
        """See `Trials`."""
        return self._of(domain).parameters()

    def score(self, domain: str, trial: Trial) -> Scores:
        """Return the scores of one trial."""
        (scores,) = self._of(domain).score_all([trial])
        return scores


class TeachingWorker(Worker):
    """A worker whose trials can teach."""

    def propose(self, domain: str, items: Items, low: float, high: float, seed: int) -> Proposal:
        """See `TeachingTrials`."""
        trials = self._of(domain)
        assert isinstance(trials, TeachingTrials)
        return trials.propose(items, low, high, seed)


@dataclass(frozen=True)
class WorkerTrials:
    """Trials of a domain that workers share; see `Trials`."""

    workers: Sequence[ActorHandle]
    domain: str

    def score_fine_tuned(self, items: Items) -> Scores:
        """Return the scores of the fine-tuned models, from the first worker."""
        found: Scores = _wait_for(
            lambda: self.workers[0].score_fine_tuned.remote(self.domain, items)
        )
        return found

    def parameters(self) -> list[str]:
        """Return the names of what is set, from the first worker."""
        found: list[str] = _wait_for(lambda: self.workers[0].parameters.remote(self.domain))
        return found

    def score_all(self, trials: Sequence[Trial]) -> Iterator[Scores]:
        """Yield the scores of several trials, in order; they are made at the same time."""
        from ray.exceptions import RayError
        from ray.util import ActorPool

        pool = ActorPool(list(self.workers))
        found = pool.map(lambda worker, trial: worker.score.remote(self.domain, trial), trials)
        while True:
            try:
                scores: Scores = next(found)
            except StopIteration:
                return
            except RayError as error:
                raise _cause_of(error) from error
            yield scores


@dataclass(frozen=True)
class TeachingWorkerTrials(WorkerTrials):
    """Trials that workers share, the first of which teaches; see `TeachingTrials`."""

    def propose(self, items: Items, low: float, high: float, seed: int) -> Proposal:
        """Return the factors that bring the pruned model nearest to the fine-tuned one."""
        found: Proposal = _wait_for(
            lambda: self.workers[0].propose.remote(self.domain, items, low, high, seed)
        )
        return found


@contextmanager
def connect(cluster: Cluster, gpus: int = 0) -> Iterator[None]:
    """Connect to a cluster, or start one; workers can be started within this context.

    Args:
        cluster: Where workers run.
        gpus: Number of GPUs that they need.

    Raises:
        DppaError: Ray is not installed or does not start, no cluster answers at the address, or
            this machine has too few GPUs. A running cluster may still get more of them.
    """
    try:
        import ray
    except ImportError as error:
        raise DppaError("Several workers need Ray: pip install 'dppa-mergekit[ray]'.") from error
    _refuse_silent(cluster.address)
    own = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=cluster.address, include_dashboard=False, log_to_driver=False)
    # Ray raises any of these where it does not start, or no cluster answers at the address.
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        missing = (
            "Ray does not start on this machine"
            if cluster.address is None
            else f"No Ray cluster at {cluster.address}"
        )
        raise DppaError(f"{missing} ({reason}).") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, own)  # Ray's handler ends the process without a message.
    try:
        available = int(ray.cluster_resources().get("GPU", 0))
        if cluster.address is None and gpus > available:
            raise DppaError(
                f"{gpus} workers on cuda need {gpus} GPUs, one each, and this machine has "
                f"{available}; name fewer workers."
            )
        yield
    finally:
        ray.shutdown()


def _refuse_silent(address: str | None) -> None:
    """Raise DppaError for an address where nothing answers; Ray itself would wait for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise DppaError(f"No Ray cluster at {address} ({error}).") from error


@contextmanager
def distribute(
    make: Callable[[str], Trials], workers: int, of_all: int, gpu: bool, teaching: bool = False
) -> Iterator[Callable[[str], Trials]]:
    """Yield a function that returns the trials of a domain, which some workers share.

    The workers end with this context. They hold the model of one domain at a time.

    Args:
        make: Makes a worker's own trials of a domain, in the worker.
        workers: Number of these workers.
        of_all: Largest number of workers at the same time, these included: they share the
            processors.
        gpu: Whether a worker has a GPU of its own.
        teaching: Whether `make` makes trials that can teach.
    """
    import ray

    processors = ray.cluster_resources().get("CPU", 1.0) / of_all
    actor = ray.remote(TeachingWorker if teaching else Worker).options(
        num_cpus=int(processors) if processors >= 1 else processors,
        num_gpus=1 if gpu else 0,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    )
    started = [actor.remote(make, os.getcwd()) for _ in range(workers)]
    try:
        kind = TeachingWorkerTrials if teaching else WorkerTrials
        yield lambda domain: kind(started, domain)
    finally:
        for worker in started:
            ray.kill(worker)


def _wait_for(call: Callable[[], Result]) -> Result:
    """Return the result of a worker's method, given a function that calls it."""
    import ray
    from ray.exceptions import RayError

    try:
        found: Result = ray.get(call())
        return found
    except RayError as error:
        raise _cause_of(error) from error


def _cause_of(error: Exception) -> DppaError:
    """Return what ended a worker: its own error, if it is one of this package's."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, DppaError):
        return cause
    lines = str(cause or error).strip().splitlines()
    return DppaError(f"A worker ended: {lines[-1] if lines else type(error).__name__}")
