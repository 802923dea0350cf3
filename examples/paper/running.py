"""Run trainings and experiments in parallel processes.

In:  trainings, and the subjects of experiments, whose models the trainings make.
Out: every subject's `results.json`. A killed run resumes when it is started again; if one subject
     fails, the others go on.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

import click
import torch
from command_log import describe_error
from experiment import STAGES, Experiment, Part
from filelock import FileLock, Timeout
from plan import Plain, Plan, Subject
from subject_folder import read_json

from dppa_mergekit.scoring.tasks import folder_hash

KEEPING_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
"""Settings with which glibc keeps the memory of tensors that are no longer used. By default, it
gives that of large ones back after every operation, and a step of decoding took 1.6 times as long
(SmolLM2 in bfloat16 on a CPU, batches of 32 to 128)."""


def measure(
    subjects: Sequence[Subject], trainings: Sequence[Part], plan: Plan, jobs: int
) -> dict[str, Plain]:
    """Train the models of subjects, measure them, and return subject -> its results.

    Args:
        subjects: The subjects to measure.
        trainings: Each makes some of their models, unless they exist.
        plan: What is measured.
        jobs: How many trainings, and then parts of experiments, run at a time.

    Raises:
        click.ClickException: A folder holds other measurements, or something failed.
    """
    experiments = {subject.name: Experiment(subject, plan) for subject in subjects}
    with ExitStack() as stack:
        for subject in subjects:
            stack.enter_context(_lock(subject.folder))
            _check_made(subject)
        pool = stack.enter_context(_workers(jobs))
        _train(pool, trainings)
        for stage in STAGES:
            parts = [
                (name, part)
                for name, experiment in experiments.items()
                for part in stage(experiment)
            ]
            running = {
                pool.submit(_work, partial(experiments[name].run, part)): name
                for name, part in parts
            }
            for name in _await_all(running):
                del experiments[name]
    failed = sorted({subject.name for subject in subjects} - set(experiments))
    if failed:
        raise click.ClickException(f"Not measured to the end: {', '.join(failed)}.")
    return {subject.name: read_json(subject.folder / "results.json") for subject in subjects}


def run_trainings(trainings: Sequence[Part], jobs: int) -> None:
    """Run trainings in parallel processes.

    Raises:
        click.ClickException: One of them failed.
    """
    with _workers(jobs) as pool:
        _train(pool, trainings)


def _train(pool: ProcessPoolExecutor, trainings: Sequence[Part]) -> None:
    if _await_all({pool.submit(_work, training): "training" for training in trainings}):
        raise click.ClickException("Not all models are trained.")


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes, each with one thread; what waits in it at the end is dropped."""
    os.environ.update(OMP_NUM_THREADS="1", **KEEPING_MEMORY)  # results depend on the threads
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Let a worker compute in one thread, and end with the process that started it."""
    torch.set_num_threads(1)
    starter = parent_process()
    assert starter is not None

    def end() -> None:
        starter.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _work(part: Part) -> None:
    """Do a part in a worker; Ctrl-C ends the worker, so that no waiting part begins in it."""
    try:
        part()
    except (click.Abort, KeyboardInterrupt, SystemExit):
        os._exit(130)


def _await_all(running: Mapping[Future[None], str]) -> set[str]:
    """Wait until all have ended, report every failure, and return the names that failed."""
    failed = set()
    for ended in as_completed(running):
        error = ended.exception()
        if isinstance(error, BrokenProcessPool):
            raise click.ClickException(
                "A process was killed; run the same command again to resume."
            )
        if error is not None:
            click.echo(f"{running[ended]}: {describe_error(error)}", err=True)
            failed.add(running[ended])
    return failed


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock a folder, so that no second run measures there at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".measured.lock", timeout=0):
            yield
    except Timeout as error:
        raise click.ClickException(f"Another run is measuring in {folder}.") from error


def _check_made(subject: Subject) -> None:
    """Raise if the subject's folder holds measurements of other models, or on other items."""
    path = subject.folder / "made.json"
    include_path = Path(subject.folder, "tasks", str(subject.tasks["include_path"]))
    items = folder_hash(Path(os.path.normpath(include_path)))  # "tasks" may not exist yet
    asked = json.loads(json.dumps({"made": subject.made, "items": items}))
    if not path.exists():
        path.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != asked:
        raise click.ClickException(
            f"{subject.folder} holds measurements of other models or items (made.json); name "
            f"another folder."
        )
