"""Predict time and memory of larger models from the results of merges.py.

    python tests/benchmarks/prediction.py results.json

Time is fitted as a + b * parameters; it holds for the machine and the flags of the results.
Anonymous memory consists of the output shards that mergekit holds, whose size is known, and of the
rest, which is fitted as a + b * elements of the largest tensor, since mergekit passes one tensor at
a time. Resident memory is not predicted: it includes as many mapped pages of checkpoints as the
kernel has room for. The advice for GPUs follows from mergekit's code and is not measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from merge_runs import FLOOR, START
from model_sizes import BYTES_PER_PARAMETER
from results import Run, compute_median, read_runs
from tables import format_gigabytes, format_number, format_table

DEFAULT_SHARD = 5_000_000_000
_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9}  # as mergekit reads them: B is 10**9 bytes


@dataclass(frozen=True)
class Model:
    """A model whose merge is predicted, with advice for its merge.

    Attributes:
        name: Name of its size.
        parameters: Number of parameters.
        largest_tensor: Elements of its largest tensor, the embedding of Llama 2.
        flags: Flag of mergekit-yaml -> when and why to use it, or not.
    """

    name: str
    parameters: float
    largest_tensor: int
    flags: dict[str, str]

    @property
    def output_bytes(self) -> float:
        """Bytes of the merged model."""
        return self.parameters * BYTES_PER_PARAMETER

    def compute_held_bytes(self, shard_size: int, at_once: int = 1) -> float:
        """Return the bytes of the output that are in memory at the same time."""
        return min(self.output_bytes, at_once * shard_size)


_SHARD = (
    "mergekit holds the shard that it fills in memory. The number counts bytes, although the help "
    "of mergekit says parameters; the default is 5B."
)
_NO_CPU_MEMORY = (
    "omit: it moves the shard being filled from RAM to the GPU's memory, which only helps if that "
    "memory is larger."
)
MODELS = (
    Model(
        "7B",
        6.74e9,
        32000 * 4096,
        {
            "--out-shard-size 2B": f"{_SHARD} 2B makes about 7 files of a 13.5 GB output.",
            "--async-write": "use on the CPU: mergekit writes a shard while it merges the next, so "
            "it holds two. For a GPU see 70B.",
            "--cuda": "use with a GPU: it holds one tensor of each model at a time, so it needs "
            "memory for a few times the largest tensor in float32 (0.5 GB each).",
            "--multi-gpu": "omit: the GPUs would share the files that they read and one writer.",
            "--low-cpu-memory": _NO_CPU_MEMORY,
        },
    ),
    Model(
        "13B",
        13.0e9,
        32000 * 5120,
        {
            "--out-shard-size 2B": f"{_SHARD} 2B makes about 13 files of a 26 GB output.",
            "--async-write": "as for 7B.",
            "--cuda": "as for 7B; the largest tensor takes 0.7 GB in float32.",
            "--multi-gpu": "as for 7B.",
            "--low-cpu-memory": _NO_CPU_MEMORY,
        },
    ),
    Model(
        "70B",
        69.0e9,
        32000 * 8192,
        {
            "--out-shard-size 5B": f"{_SHARD} 5B makes about 28 files of a 138 GB output.",
            "--async-write": "use on the CPU. On a GPU only with storage that writes as fast as "
            "the GPU merges: the queue of shards has no limit, up to the whole output in memory.",
            "--cuda": "use with a GPU: the largest tensor takes 1 GB in float32.",
            "--multi-gpu": "use with several GPUs and storage that feeds them: the GPUs share the "
            "tensors, but all tensors come from the same files and go to the same writer.",
            "--low-cpu-memory": "use if the GPU has more free memory than the machine: it then "
            "holds the shard being filled.",
        },
    ),
)


@dataclass(frozen=True)
class Group:
    """Runs of one method under the same circumstances, which are fitted by one line."""

    label: str
    machine: str
    method: str
    cold: bool
    flags: tuple[str, ...]
    models: int

    @classmethod
    def of(cls, run: Run) -> Group:
        """Return the group of a run."""
        return cls(run.label, run.machine, run.method, run.cold, run.flags, run.models)

    @property
    def circumstances(self) -> str:
        """Everything except the method, in words."""
        parts = [self.label, "cold" if self.cold else "warm", *self.flags]
        return " ".join(part for part in parts if part)

    @property
    def shard_size(self) -> int:
        """Bytes of a shard of the output."""
        words = [part for flag in self.flags for part in flag.replace("=", " ").split()]
        if "--out-shard-size" not in words:
            return DEFAULT_SHARD
        text = words[words.index("--out-shard-size") + 1].lower()
        unit = _UNITS.get(text[-1])
        return int(text) if unit is None else int(text[:-1]) * unit

    @property
    def shards_at_once(self) -> int:
        """The number of output shards in memory; asynchronous writing holds a second one."""
        return 2 if "--async-write" in self.flags else 1


@dataclass(frozen=True)
class Line:
    """The line a + b * x, fitted to points with at least two different x."""

    a: float
    b: float
    points: int

    @classmethod
    def fit(cls, points: Sequence[tuple[float, float]]) -> Line | None:
        """Return the line of least squares; None without two different x."""
        if len({x for x, _ in points}) < 2:
            return None
        x, y = np.array(points).T
        b, a = np.polyfit(x, y, 1)
        return cls(float(a), float(b), len(points))

    def evaluate(self, x: float) -> float:
        """Return the value at x."""
        return self.a + self.b * x


def fit_time(runs: Sequence[Run]) -> Line | None:
    """Fit the median seconds of each size by parameters."""
    return Line.fit(
        [
            (
                of_size[0].parameters,
                compute_median(of_size, lambda run: run.measured.wall_seconds) or 0.0,
            )
            for of_size in _group_by_size(runs)
        ]
    )


def fit_memory(runs: Sequence[Run], group: Group) -> Line | None:
    """Fit the median anonymous bytes of each size without held output, by the largest tensor."""
    points = []
    for of_size in _group_by_size(runs):
        first = of_size[0]
        output = first.parameters * BYTES_PER_PARAMETER
        held = min(output, group.shards_at_once * group.shard_size)
        peak = compute_median(of_size, lambda run: run.measured.peak_anonymous_bytes) or 0.0
        points.append((float(first.largest_tensor), peak - held))
    return Line.fit(points)


def _group_by_size(runs: Sequence[Run]) -> list[list[Run]]:
    return [
        [run for run in runs if run.parameters == parameters]
        for parameters in sorted({run.parameters for run in runs})
    ]


def make_time_row(group: Group, line: Line) -> list[str]:
    """Return a row of the table of times."""
    return [
        group.method,
        group.circumstances,
        str(line.points),
        f"{line.a:.2f} + {line.b * 1e9:.2f} per 1e9",
        *(format_number(line.evaluate(model.parameters), 0) for model in MODELS),
    ]


def make_memory_row(group: Group, line: Line) -> list[str]:
    """Return a row of the table of memory."""
    return [
        group.method,
        group.circumstances,
        str(line.points),
        f"{line.a / 1e9:.2f} + {line.b:.1f} bytes per element",
        *(
            format_gigabytes(
                line.evaluate(model.largest_tensor)
                + model.compute_held_bytes(group.shard_size, group.shards_at_once)
            )
            for model in MODELS
        ),
    ]


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--label", help="Only use results with this label.")
def main(results: Path, label: str | None) -> None:
    """Predict merges of 7B, 13B and 70B from RESULTS, and recommend flags for them."""
    groups: dict[Group, list[Run]] = {}
    for run in read_runs(results):
        if run.method != START and label in (None, run.label):
            groups.setdefault(Group.of(run), []).append(run)
    times, memory = [], []
    for group, runs in groups.items():
        by_parameters, by_tensor = fit_time(runs), fit_memory(runs, group)
        if by_parameters is None or by_tensor is None:
            click.echo(
                f"{group.method} ({group.circumstances}): only one size was measured",
                err=True,
            )
            continue
        times.append(make_time_row(group, by_parameters))
        if group.method != FLOOR:  # plain copies hold no output
            memory.append(make_memory_row(group, by_tensor))
    for machine in dict.fromkeys(group.machine for group in groups):
        click.echo(machine)
    names = [model.name for model in MODELS]
    if times:
        click.echo("\nSeconds, as a line by the parameters:\n")
        click.echo(format_table(["method", "measured", "sizes", "line", *names], times))
        click.echo(
            "\nPeak anonymous GB: held output, plus the rest as a line by the largest tensor:\n"
        )
        click.echo(format_table(["method", "measured", "sizes", "rest GB", *names], memory))
    click.echo("\nFlags:\n")
    for model in MODELS:
        for flag, why in model.flags.items():
            click.echo(f"- {model.name} `{flag}`: {why}")


if __name__ == "__main__":
    main()
