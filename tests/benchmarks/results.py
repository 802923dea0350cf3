"""Measured runs: stored in a JSON file and summarized."""

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
from merge_runs import MergeRunner, read_statistics_seconds
from processes import Measured

Command = TypeVar("Command", bound=Callable[..., object])


@dataclass(frozen=True)
class Run:
    """One run of one method, with its models and its machine.

    Attributes:
        session: Start time of the script that measured it.
        label: The user's label, such as a version.
        machine: One line about the machine.
        size: Name of the models' size.
        layers: Number of layers of the models.
        parameters: Number of parameters of each model.
        largest_tensor: Number of elements of the largest tensor.
        models: Number of fine-tuned models.
        input_shards: Number of files of each model.
        method: A row of METHODS, the floor or the start.
        round: Number of its round; methods of one round run directly after one another.
        cold: Whether the inputs were not in the page cache.
        flags: Flags for mergekit-yaml.
        statistics_seconds: Time of the statistics, by the run's own log.
        measured: Measurements of the process, without stderr.
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


def add_results_option(default: str) -> Callable[[Command], Command]:
    """Return a decorator that adds the option for the file of results."""
    return click.option(
        "--results",
        type=click.Path(path_type=Path, dir_okay=False),
        default=default,
        show_default=True,
        help="File to which every run is appended.",
    )


def record_run(
    results: Path, runner: MergeRunner, method: str, number: int, session: str, label: str = ""
) -> Run:
    """Run a method once, append the run to the results, and report its time on stderr."""
    run = _measure_run(runner, method, number, session, label)
    _append(results, run)
    models = f"{run.size}, {run.layers} layers, {run.input_shards} shards"
    click.echo(f"{models}, round {number}, {method}: {run.measured.wall_seconds:.2f} s", err=True)
    return run


def _measure_run(runner: MergeRunner, method: str, number: int, session: str, label: str) -> Run:
    """Run a method once and measure it."""
    family = runner.family
    measured = runner.measure(method)
    return Run(
        session=session,
        label=label,
        machine=describe_machine(),
        size=family.size,
        layers=family.shape.layers,
        parameters=family.shape.parameters,
        largest_tensor=family.shape.largest_tensor,
        models=family.models,
        input_shards=len(family.list_weight_files("base")),
        method=method,
        round=number,
        cold=runner.cold,
        flags=tuple(runner.flags),
        statistics_seconds=read_statistics_seconds(measured),
        measured=measured,
    )


def _append(path: Path, run: Run) -> None:
    """Append a run to a results file, which may not exist yet."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    record = asdict(run)
    del record["measured"]["stderr"]
    written = path.with_name(path.name + ".part")
    written.write_text(json.dumps([*content, record], indent=1) + "\n", encoding="utf-8")
    written.replace(path)  # an interruption leaves the old file or the new one


def read_runs(path: Path) -> list[Run]:
    """Return all runs of a results file."""
    runs = []
    for record in json.loads(path.read_text(encoding="utf-8")):
        measured = Measured(**record.pop("measured"))
        flags = tuple(record.pop("flags"))
        runs.append(Run(**record, flags=flags, measured=measured))
    return runs


def describe_machine() -> str:
    """Return one line about the machine and its installed versions."""
    threads = os.environ.get("OMP_NUM_THREADS")
    return (
        f"{len(os.sched_getaffinity(0))} CPUs, torch {version('torch')}, "
        f"mergekit {version('mergekit')}" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    )


def compute_median(runs: Sequence[Run], value: Callable[[Run], float | None]) -> float | None:
    """Return the median of a value over runs; None if no run has the value."""
    values = [found for found in map(value, runs) if found is not None]
    return median(values) if values else None


def compute_ratio(runs: Sequence[Run], reference: Sequence[Run]) -> float | None:
    """Return the median of the ratios of time within each round; None without common rounds.

    If something slows the machine down for a while, it slows both runs of a round.
    """
    times = {run.round: run.measured.wall_seconds for run in reference}
    ratios = [run.measured.wall_seconds / times[run.round] for run in runs if run.round in times]
    return median(ratios) if ratios else None
