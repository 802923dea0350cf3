"""Measure time and memory of whole merges, with methods in alternation.

    python tests/benchmarks/merges.py FOLDER --size 0.2B --size 1.0B --method task_arithmetic \\
        --method ties --method dppa --rounds 3 --results results.json

Every run is a fresh process of `mergekit-yaml` over a base and three fine-tuned models. Two rows
are not merges: `floor` reads all inputs twice and writes one output by plain copies, and `start` is
mergekit's start alone, which takes most of the time of small merges.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import click
from merge_runs import FLOOR, METHODS, START, MergeRunner
from model_sizes import BYTES_PER_PARAMETER, SIZES
from random_models import Family, write_missing
from results import (
    Run,
    add_results_option,
    compute_median,
    compute_ratio,
    describe_machine,
    record_run,
)
from tables import format_gigabytes, format_number, format_table

HEAD = (
    "size",
    "method",
    "median s",
    "x task_arithmetic",
    "x ties",
    "statistics s",
    "rest s",
    "peak resident GB",
    "peak anonymous GB",
    "read GB",
    "written GB",
)
LEGEND = (
    "Ratios are medians of the ratios within each round. Resident memory includes the mapped pages "
    "of the checkpoints, anonymous memory does not. Read bytes came from storage, not from the "
    "page cache. Every merge starts Python and mergekit, as the row `start` does."
)


def tabulate(runs: Sequence[Run]) -> str:
    """Return a row for each size and method, in the order of their first runs."""
    rows = []
    for size in dict.fromkeys(run.size for run in runs):
        of_size = [run for run in runs if run.size == size]
        by_method = {
            method: [run for run in of_size if run.method == method]
            for method in dict.fromkeys(run.method for run in of_size)
        }
        rows += [
            _make_row(
                method, chosen, by_method.get("task_arithmetic", ()), by_method.get("ties", ())
            )
            for method, chosen in by_method.items()
        ]
    return format_table(HEAD, rows)


def _make_row(
    method: str, runs: Sequence[Run], task_arithmetic: Sequence[Run], ties: Sequence[Run]
) -> list[str]:
    return [
        f"{runs[0].size} ({runs[0].parameters / 1e9:.3g}e9)",
        method,
        format_number(compute_median(runs, lambda run: run.measured.wall_seconds)),
        format_number(compute_ratio(runs, task_arithmetic)),
        format_number(compute_ratio(runs, ties)),
        format_number(compute_median(runs, lambda run: run.statistics_seconds)),
        format_number(compute_median(runs, _subtract_statistics)),
        format_gigabytes(compute_median(runs, lambda run: run.measured.peak_resident_bytes)),
        format_gigabytes(compute_median(runs, lambda run: run.measured.peak_anonymous_bytes)),
        format_gigabytes(compute_median(runs, lambda run: run.measured.storage_read_bytes)),
        format_gigabytes(compute_median(runs, lambda run: run.measured.storage_written_bytes)),
    ]


def _subtract_statistics(run: Run) -> float | None:
    if run.statistics_seconds is None:
        return None
    return run.measured.wall_seconds - run.statistics_seconds


def prepare(runner: MergeRunner, methods: Sequence[str]) -> None:
    """Fill the page cache and the statistics of cached methods before the first measured run."""
    if not runner.cold:
        needed = (runner.family.models + 2) * runner.family.shape.parameters * BYTES_PER_PARAMETER
        if needed > _read_available_memory():
            click.echo("warning: inputs and output do not fit the page cache together", err=True)
    # This also prepares cold runs, which are not meant to read Python's own files from storage.
    runner.measure("task_arithmetic")
    for method in methods:
        cached = method in METHODS and METHODS[method].cached
        if cached and not runner.fill_statistics_cache(method):
            click.echo(f"warning: {method} left no statistics in the cache", err=True)


def _read_available_memory() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--size", "sizes", type=click.Choice(list(SIZES)), multiple=True, default=["0.2B"])
@click.option(
    "--method",
    "methods",
    type=click.Choice(list(METHODS)),
    multiple=True,
    default=["task_arithmetic", "ties", "dppa", "dppa cached"],
    show_default=True,
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--models", type=click.IntRange(min=1), default=3, show_default=True, help="Fine-tuned models."
)
@click.option(
    "--sparse",
    is_flag=True,
    help="Use checkpoints that are three quarters holes: for memory, if the disk is too small.",
)
@click.option("--cold", is_flag=True, help="Drop the inputs from the page cache before every run.")
@click.option("--floor/--no-floor", default=True, help="Whether to measure floor and start, too.")
@click.option(
    "--flag", "flags", multiple=True, help="Flag for mergekit-yaml, such as --flag=--async-write."
)
@click.option("--label", default="", help="Label of the results, such as a version.")
@add_results_option("results.json")
def main(
    folder: Path,
    sizes: tuple[str, ...],
    methods: tuple[str, ...],
    rounds: int,
    models: int,
    sparse: bool,
    cold: bool,
    floor: bool,
    flags: tuple[str, ...],
    label: str,
    results: Path,
) -> None:
    """Measure merges of the checkpoints below FOLDER; missing ones are written first."""
    session = datetime.now(timezone.utc).isoformat(timespec="seconds")
    rows = [*((FLOOR, START) if floor else ()), *dict.fromkeys(methods)]
    runs: list[Run] = []
    for size in sizes:
        runner = MergeRunner(
            write_missing(Family(folder, size, models, sparse=sparse)), flags, cold
        )
        click.echo(f"{size}: warming up", err=True)
        prepare(runner, rows)
        for round_ in range(1, rounds + 1):
            # The order alternates, so that no method always follows the same other one.
            for method in rows if round_ % 2 else reversed(rows):
                runs.append(record_run(results, runner, method, round_, session, label))
    states = ["page cache cold" if cold else "page cache warm", *flags]
    state = ", ".join([*states, *(["sparse files"] if sparse else [])])
    click.echo(f"{describe_machine()}; {models} models, {rounds} rounds, {state}\n")
    click.echo(tabulate(runs))
    click.echo(f"\n{LEGEND}")


if __name__ == "__main__":
    main()
