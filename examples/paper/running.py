"""Trainings and experiments, as many at a time as there are cores.

In:  trainings, and the subjects of experiments, whose models they make.
Out: every subject's `results.json`. What was killed goes on; if one fails, the others go on.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path

import click
import torch
from experiment import STAGES, Experiment, Part, Plain, Plan, Subject, read_json, told
from filelock import FileLock, Timeout

from dppa_mergekit.scoring.tasks import folder_hash


def measure(
    subjects: Sequence[Subject], trainings: Sequence[Part], plan: Plan, jobs: int
) -> dict[str, Plain]:
    """Train and measure subjects, and give what was measured, by name.

    Args:
        subjects: To measure.
        trainings: Each makes some of their models, as far as these are not there.
        plan: What is measured.
        jobs: Trainings, then parts of experiments at a time.

    Raises:
        click.ClickException: A folder holds other measurements, or something failed.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # sums, and so trained weights, depend on the number
    going = {each.name: Experiment(each, plan) for each in subjects}
    with ExitStack() as held:
        for each in subjects:
            held.enter_context(_alone(each.folder))
            _refuse_others(each, plan)
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_begin)
        held.callback(pool.shutdown, cancel_futures=True)
        if _failed({pool.submit(_work, training): "training" for training in trainings}):
            raise click.ClickException("Not all models are trained.")
        for stage in STAGES:
            parts = [(name, part) for name, each in going.items() for part in stage(each)]
            running = {
                pool.submit(_work, partial(going[name].run, part)): name for name, part in parts
            }
            for name in _failed(running):
                del going[name]
    failed = sorted({each.name for each in subjects} - set(going))
    if failed:
        raise click.ClickException(f"Not measured to the end: {', '.join(failed)}.")
    return {each.name: read_json(each.folder / "results.json") for each in subjects}


def _begin() -> None:
    """Of a worker: it computes in one thread, and does not outlive who started it."""
    torch.set_num_threads(1)
    starter = parent_process()
    assert starter is not None

    def end() -> None:
        starter.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _work(part: Part) -> None:
    """Do a part in a worker; Ctrl-C ends the worker, so that what waits for it is not begun."""
    try:
        part()
    except (click.Abort, KeyboardInterrupt, SystemExit):
        os._exit(130)


def _failed(running: Mapping[Future[None], str]) -> set[str]:
    """The names of those that failed, when all have ended; each failure is told."""
    failed = set()
    for ended in as_completed(running):
        error = ended.exception()
        if isinstance(error, BrokenProcessPool):
            raise click.ClickException("A process was killed; the same command goes on.")
        if error is not None:
            click.echo(f"{running[ended]}: {told(error)}", err=True)
            failed.add(running[ended])
    return failed


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse a second run in a folder while one is at work."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".measured.lock", timeout=0):
            yield
    except Timeout as error:
        raise click.ClickException(f"Another run is measuring in {folder}.") from error


def _refuse_others(subject: Subject, plan: Plan) -> None:
    """What was measured by other settings must not be taken for what this plan asks for."""
    path = subject.folder / "plan.json"
    written = Path(subject.folder, "tasks", str(subject.tasks["include_path"]))
    items = folder_hash(Path(os.path.normpath(written)))  # "tasks" may not be there yet
    given = [asdict(plan), subject.tasks, items, subject.made, subject.device]
    asked = json.loads(json.dumps(given))
    if not path.exists():
        path.write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != asked:
        raise click.ClickException(
            f"{subject.folder} holds what was measured by another plan, of other items or models, "
            f"or on another device (plan.json); name another folder."
        )
