"""Measure the time that the plugin adds to the start of Python and of mergekit.

    python tests/benchmarks/startup.py

Python: two fresh virtual environments without any package, one with the plugin's `.pth` file and
stub copied into it. mergekit: `mergekit-yaml --help` of the environment that runs this script,
which has the plugin, with DPPA_MERGEKIT_AUTOLOAD=1 and =0.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import click
from merge_runs import find_mergekit_yaml, make_user_environment
from results import describe_machine
from tables import format_number, format_table

AUTOLOAD = Path(__file__).parents[2] / "dppa_mergekit" / "autoload"
STUB = "dppa_mergekit_autoload"


@dataclass(frozen=True)
class Case:
    """A command to start without the plugin and with it."""

    title: str
    without: Sequence[str]
    with_: Sequence[str]
    environment_without: Mapping[str, str]
    environment_with: Mapping[str, str]

    def measure(self, runs: int) -> tuple[list[float], list[float]]:
        """Return the seconds of all runs without and with the plugin; the order alternates."""
        started = [(self.without, self.environment_without), (self.with_, self.environment_with)]
        for command, environment in started:  # writes bytecode and fills the page cache
            time_run(command, environment)
        times: tuple[list[float], list[float]] = ([], [])
        for run in range(runs):
            for index in (0, 1) if run % 2 else (1, 0):
                times[index].append(time_run(*started[index]))
        return times

    def make_row(self, runs: int) -> list[str]:
        """Measure the case and return a row of the table."""
        without, with_ = self.measure(runs)
        differences = [1e3 * (b - a) for a, b in zip(without, with_, strict=True)]
        low, _, high = quantiles(differences, n=4)
        ratios = [b / a for a, b in zip(without, with_, strict=True)]
        return [
            self.title,
            str(runs),
            format_number(1e3 * median(without)),
            format_number(1e3 * median(with_)),
            format_number(median(differences), 3),
            f"{low:.3f} to {high:.3f}",
            format_number(median(ratios), 3),
        ]


HEAD = (
    "command",
    "runs",
    "without ms",
    "with ms",
    "difference ms",
    "middle half of differences ms",
    "ratio",
)


def time_run(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Return the seconds of one run."""
    start = time.perf_counter()
    subprocess.run(
        command,
        env={**make_user_environment(), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def make_interpreter(folder: Path, plugin: bool) -> str:
    """Create an environment and return its interpreter.

    Raises:
        RuntimeError: The interpreter loads the stub without the plugin, or fails to load it.
    """
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    if plugin:
        for path in (AUTOLOAD / "dppa_mergekit.pth", AUTOLOAD / f"{STUB}.py"):
            shutil.copy(path, packages)
    python = str(folder / "bin" / "python")
    loaded = subprocess.run(
        [python, "-I", "-c", f"import sys; print({STUB!r} in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if loaded != str(plugin):
        raise RuntimeError(f"{python}: the stub is loaded is {loaded}, not {plugin}.")
    return python


@click.command()
@click.option("--runs", type=click.IntRange(min=2), default=200, show_default=True)
@click.option("--mergekit-runs", type=click.IntRange(min=2), default=7, show_default=True)
def main(runs: int, mergekit_runs: int) -> None:
    """Measure starts of Python and of mergekit without the plugin and with it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare = [make_interpreter(folder / "without", plugin=False), "-I", "-c", "pass"]
        stub = [make_interpreter(folder / "with", plugin=True), "-I", "-c", "pass"]
        rows = [Case("python -I -c pass", bare, stub, {}, {}).make_row(runs)]
    click.echo("Python is done", err=True)
    help_ = [*find_mergekit_yaml(), "--help"]
    off, on = ({"DPPA_MERGEKIT_AUTOLOAD": value} for value in "01")
    rows.append(Case("mergekit-yaml --help", help_, help_, off, on).make_row(mergekit_runs))
    click.echo(f"{describe_machine()}, Python {sys.version.split()[0]}\n")
    click.echo(format_table(HEAD, rows))
    click.echo("\nDifference and ratio are medians over pairs of consecutive runs.")


if __name__ == "__main__":
    main()
