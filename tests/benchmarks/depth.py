"""Measure whether memory, and time per parameter, grow with depth or with the number of shards.

    python tests/benchmarks/depth.py FOLDER

mergekit holds the output shard that it is filling. Here that shard is small, so the rest of the
memory is held by the method itself. The time per parameter does not include mergekit's start.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import click
from merge_runs import METHODS, START, MergeRunner
from model_sizes import SIZES
from random_models import SHARD_SIZE, Family, write_missing
from results import Run, add_results_option, compute_median, describe_machine, record_run
from tables import format_gigabytes, format_number, format_table

HEAD = (
    "layers",
    "input shards",
    "parameters",
    "method",
    "median s",
    "ns per parameter",
    "peak anonymous GB",
    "peak resident GB",
)


def tabulate(runs: Sequence[Run]) -> str:
    """Return a row for each depth, number of shards and method."""
    starts = {run.round: run.measured.wall_seconds for run in runs if run.method == START}
    merges = [run for run in runs if run.method != START]
    keys = dict.fromkeys((run.method, run.layers, run.input_shards) for run in merges)

    def divide_time(run: Run) -> float:
        return 1e9 * (run.measured.wall_seconds - starts[run.round]) / run.parameters

    rows = []
    for key in sorted(keys, key=lambda key: (list(METHODS).index(key[0]), key)):
        chosen = [run for run in merges if (run.method, run.layers, run.input_shards) == key]
        rows.append(
            [
                str(chosen[0].layers),
                str(chosen[0].input_shards),
                f"{chosen[0].parameters:,}",
                chosen[0].method,
                format_number(compute_median(chosen, lambda run: run.measured.wall_seconds)),
                format_number(compute_median(chosen, divide_time)),
                format_gigabytes(
                    compute_median(chosen, lambda run: run.measured.peak_anonymous_bytes)
                ),
                format_gigabytes(
                    compute_median(chosen, lambda run: run.measured.peak_resident_bytes)
                ),
            ]
        )
    return format_table(HEAD, rows)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--size", type=click.Choice(list(SIZES)), default="0.2B", show_default=True)
@click.option("--layers", "depths", type=int, multiple=True, default=[8, 32], show_default=True)
@click.option("--shards", type=int, multiple=True, default=[1, 20], show_default=True)
@click.option(
    "--method",
    "methods",
    type=click.Choice(list(METHODS)),
    multiple=True,
    default=["task_arithmetic", "dppa"],
    show_default=True,
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--out-shard-size",
    default="50M",
    show_default=True,
    help="Bytes of an output shard, as mergekit reads them.",
)
@add_results_option("depth.json")
def main(
    folder: Path,
    size: str,
    depths: tuple[int, ...],
    shards: tuple[int, ...],
    methods: tuple[str, ...],
    rounds: int,
    out_shard_size: str,
    results: Path,
) -> None:
    """Measure merges of the checkpoints below FOLDER; missing ones are written first."""
    session = datetime.now(timezone.utc).isoformat(timespec="seconds")
    runners = []
    for layers in depths:
        for count in shards:
            shape = Family(folder, size, layers=layers).shape
            # If the usual shard size fits, use the family that other scripts use.
            usual = len(shape.fill_shards(SHARD_SIZE)) == count
            shard_size = SHARD_SIZE if usual else shape.find_shard_size(count)
            family = write_missing(Family(folder, size, layers=layers, shard_size=shard_size))
            runners.append(MergeRunner(family, (f"--out-shard-size={out_shard_size}",)))
    for runner in runners:
        runner.measure("task_arithmetic")  # fills the page cache
    runs: list[Run] = []

    for round_ in range(1, rounds + 1):
        runs.append(record_run(results, runners[0], START, round_, session))
        for runner in runners if round_ % 2 else reversed(runners):
            for method in methods:
                runs.append(record_run(results, runner, method, round_, session))
    click.echo(
        f"{describe_machine()}; {size}, output shards of {out_shard_size}, {rounds} rounds\n"
    )
    click.echo(tabulate(runs))


if __name__ == "__main__":
    main()
