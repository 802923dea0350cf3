"""Measure how soon `mergekit-dppa check` answers: its first finding, and all of them.

    python tests/benchmarks/checks.py recipe.yml

The recipe is that of a merge, such as those that merges.py leaves in its folder. Beside the seconds
stand their ratios to the start of `mergekit-yaml --help`, which imports torch and mergekit, too.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import click
from merge_runs import find_mergekit_yaml, make_user_environment
from results import describe_machine
from tables import format_number, format_table

HEAD = ("command", "first finding s", "all s", "ratio")


def time_lines(command: Sequence[str]) -> tuple[float, float]:
    """Return the seconds to the first line on stdout, and to the end of a command that succeeds."""
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        env={**make_user_environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        first = time.perf_counter() - start
        process.stdout.read()
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)} exits with {process.returncode}.")
    return first, time.perf_counter() - start


@click.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
def main(recipe: Path, runs: int) -> None:
    """Measure checks of RECIPE, in turn with starts of mergekit."""
    yaml_command = find_mergekit_yaml()
    check = [str(Path(yaml_command[-1]).with_name("mergekit-dppa")), "check", str(recipe)]
    commands = {
        "mergekit-yaml --help": [*yaml_command, "--help"],
        "check": check,
        "check --quick": [*check, "--quick"],
    }
    times: dict[str, list[tuple[float, float]]] = {title: [] for title in commands}
    for run in range(runs + 1):  # the first fills the page cache
        for title, command in commands.items():
            measured = time_lines(command)
            if run:
                times[title].append(measured)
    firsts, alls = (
        {title: median(each[part] for each in measured) for title, measured in times.items()}
        for part in (0, 1)
    )
    start = alls["mergekit-yaml --help"]
    rows = [
        [title, format_number(firsts[title]), format_number(whole), format_number(whole / start, 2)]
        for title, whole in alls.items()
    ]
    click.echo(f"{describe_machine()}, medians of {runs} runs\n")
    click.echo(format_table(HEAD, rows))


if __name__ == "__main__":
    main()
