"""Measured runs: kept in a JSON file, and summed up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TypeVar

import click
from merge_runs import MergeRunner, statistics_seconds
from processes import Measured

Command = TypeVar("Command", bound=Callable[..., object])


@dataclass(frozen=True)
class Run:
    """One run of one method, and what it was run on.

    Attributes:
        session: When the script was started that measured it.
        label: The user's name for what was measured, such as a version.
        machine: One line about the machine.
        size: A name of the models' size.
        layers: Their depth.
        parameters: Number of parameters of each model.
        largest_tensor: Number of elements.
        models: Number of fine-tuned models.
        input_shards: Number of files of each model.
        method: A row of METHODS, the floor or the start.
        round: Methods of one round were run one right after the other.
        cold: Whether nothing was in the page cache.
        flags: For mergekit-yaml.
        statistics_seconds: The part of the time that the run said it took for statistics.
        measured: The rest of it, without stderr.
    """

    session: str
    label: str
    machine: str
    size: str
    layers: int
    parameters: int
    largest_tensor: int
    models: int
    input_shards: int
    method: str
    round: int
    cold: bool
    flags: tuple[str, ...]
    statistics_seconds: float | None
    measured: Measured


def results_option(default: str) -> Callable[[Command], Command]:
    """The option that names the file which every run is appended to."""
    return click.option(
        "--results",
        type=click.Path(path_type=Path, dir_okay=False),
        default=default,
        show_default=True,
        help="Every run is appended to this file.",
    )


def recorded(
    results: Path, runner: MergeRunner, method: str, number: int, session: str, label: str = ""
) -> Run:
    """Run a method once, append it to the results, and say on stderr what it took."""
    run = _new_run(runner, method, number, session, label)
    _append(results, run)
    place = f"{run.size}, {run.layers} layers, {run.input_shards} shards"
    click.echo(f"{place}, round {number}, {method}: {run.measured.wall_seconds:.2f} s", err=True)
    return run


def _new_run(runner: MergeRunner, method: str, number: int, session: str, label: str) -> Run:
    """Run a method once and measure it."""
    family = runner.family
    measured = runner.measure(method)
    return Run(
        session=session,
        label=label,
        machine=machine(),
        size=family.size,
        layers=family.shape.layers,
        parameters=family.shape.parameters,
        largest_tensor=family.shape.largest_tensor,
        models=family.models,
        input_shards=len(family.weight_files("base")),
        method=method,
        round=number,
        cold=runner.cold,
        flags=tuple(runner.flags),
        statistics_seconds=statistics_seconds(measured),
        measured=measured,
    )


def _append(path: Path, run: Run) -> None:
    """Add a run to a results file, which may not exist yet."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    record = asdict(run)
    del record["measured"]["stderr"]
    written = path.with_name(path.name + ".part")
    written.write_text(json.dumps([*content, record], indent=1) + "\n", encoding="utf-8")
    written.replace(path)  # an interruption leaves the old file or the new one


def read(path: Path) -> list[Run]:
    """All runs of a results file."""
    runs = []
    for record in json.loads(path.read_text(encoding="utf-8")):
        measured = Measured(**record.pop("measured"))
        flags = tuple(record.pop("flags"))
        runs.append(Run(**record, flags=flags, measured=measured))
    return runs


def machine() -> str:
    """One line about the machine and what was installed there."""
    threads = os.environ.get("OMP_NUM_THREADS")
    return (
        f"{len(os.sched_getaffinity(0))} CPUs, torch {version('torch')}, "
        f"mergekit {version('mergekit')}" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    )


def middle(runs: Sequence[Run], value: Callable[[Run], float | None]) -> float | None:
    """The median over runs; None where no run has the value."""
    values = [found for found in map(value, runs) if found is not None]
    return median(values) if values else None


def ratio(runs: Sequence[Run], reference: Sequence[Run]) -> float | None:
    """The median of the ratios of time within each round.

    What slows the machine down for a while slows both runs of a round.
    """
    times = {run.round: run.measured.wall_seconds for run in reference}
    ratios = [run.measured.wall_seconds / times[run.round] for run in runs if run.round in times]
    return median(ratios) if ratios else None
