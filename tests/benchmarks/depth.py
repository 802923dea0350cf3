"""Whether memory, and time per parameter, grow with the depth of the models or with their shards.

    python tests/benchmarks/depth.py FOLDER

mergekit holds the output shard that it is filling. Here that shard is small, so that what is
left is what the method itself holds. From the time per parameter mergekit's start is taken off.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import click
from merge_runs import METHODS, START, MergeRunner
from model_sizes import SIZES
from random_models import SHARD_SIZE, Family, ensured
from results import Run, machine, middle, recorded, results_option
from tables import gigabytes, markdown, number

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


def table(runs: Sequence[Run]) -> str:
    """One row for each depth, number of shards and method."""
    starts = {run.round: run.measured.wall_seconds for run in runs if run.method == START}
    merges = [run for run in runs if run.method != START]
    keys = dict.fromkeys((run.method, run.layers, run.input_shards) for run in merges)

    def nanoseconds_per_parameter(run: Run) -> float:
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
                number(middle(chosen, lambda run: run.measured.wall_seconds)),
                number(middle(chosen, nanoseconds_per_parameter)),
                gigabytes(middle(chosen, lambda run: run.measured.peak_anonymous_bytes)),
                gigabytes(middle(chosen, lambda run: run.measured.peak_resident_bytes)),
            ]
        )
    return markdown(HEAD, rows)


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
@click.option("--out-shard-size", default="50M", show_default=True, help="Bytes, for mergekit.")
@results_option("depth.json")
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
    """Measure merges of the checkpoints below FOLDER, which are written if need be."""
    session = datetime.now(timezone.utc).isoformat(timespec="seconds")
    runners = []
    for layers in depths:
        for count in shards:
            shape = Family(folder, size, layers=layers).shape
            # Where the usual shard size does, the family is the one that other scripts use.
            usual = len(shape.shards(SHARD_SIZE)) == count
            shard_size = SHARD_SIZE if usual else shape.shard_size(count)
            family = ensured(Family(folder, size, layers=layers, shard_size=shard_size))
            runners.append(MergeRunner(family, (f"--out-shard-size={out_shard_size}",)))
    for runner in runners:
        runner.measure("task_arithmetic")  # page cache
    runs: list[Run] = []

    for round_ in range(1, rounds + 1):
        runs.append(recorded(results, runners[0], START, round_, session))
        for runner in runners if round_ % 2 else reversed(runners):
            for method in methods:
                runs.append(recorded(results, runner, method, round_, session))
    click.echo(f"{machine()}; {size}, output shards of {out_shard_size}, {rounds} rounds\n")
    click.echo(table(runs))


if __name__ == "__main__":
    main()
