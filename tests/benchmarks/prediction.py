"""From the results of merges.py: time and memory of models that were not measured.

    python tests/benchmarks/prediction.py results.json

Time is fitted as a + b * parameters, and holds for the machine and the flags of the results.
Anonymous memory is the output shards that mergekit holds,
which are known, and the rest, which is fitted as a + b * elements of the largest tensor: mergekit
hands over one tensor at a time. Resident memory is not predicted: the mapped pages of checkpoints
in it are as many as the kernel has room for. What is said of GPUs follows from mergekit's code; it
is not measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from merge_runs import FLOOR, START
from model_sizes import BYTES_PER_PARAMETER
from results import Run, middle, read
from tables import gigabytes, markdown, number

DEFAULT_SHARD = 5_000_000_000
_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9}  # as mergekit reads them: B is 10**9 bytes


@dataclass(frozen=True)
class Model:
    """A model whose merge is predicted, and how it is best merged.

    Attributes:
        name: Of its size.
        parameters: Their number.
        largest_tensor: Elements of its largest tensor: the embedding of Llama 2.
        flags: Flag of mergekit-yaml -> when and why to give it, or not to.
    """

    name: str
    parameters: float
    largest_tensor: int
    flags: dict[str, str]

    @property
    def output_bytes(self) -> float:
        """Of the merged model."""
        return self.parameters * BYTES_PER_PARAMETER

    def held(self, shard_size: int, at_once: int = 1) -> float:
        """Bytes of the output that are in memory at the same time."""
        return min(self.output_bytes, at_once * shard_size)


_SHARD = (
    "mergekit holds the shard that it fills in memory. The number counts bytes, though its help "
    "says parameters; the default is 5B."
)
_NO_CPU_MEMORY = (
    "leave out: it moves the shard being filled from RAM to the GPU's memory, which helps only "
    "where that is the larger of the two."
)
MODELS = (
    Model(
        "7B",
        6.74e9,
        32000 * 4096,
        {
            "--out-shard-size 2B": f"{_SHARD} 2B makes about 7 files of a 13.5 GB output.",
            "--async-write": "yes on the CPU: a shard is written while the next is merged, so two "
            "are held. On a GPU see 70B.",
            "--cuda": "with a GPU: one tensor of each model is there at a time, so any GPU will do "
            "that holds a few times the largest tensor in float32 (0.5 GB each).",
            "--multi-gpu": "leave out: the GPUs would share the files they read and one writer.",
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
            "--async-write": "on the CPU yes. On a GPU only with storage that writes as fast as "
            "the GPU merges: shards that wait have no limit, up to the whole output in memory.",
            "--cuda": "with a GPU: the largest tensor takes 1 GB in float32.",
            "--multi-gpu": "with several GPUs, and storage that feeds them: tensors are spread "
            "over the GPUs, but all come from the same files and go to the same writer.",
            "--low-cpu-memory": "where the GPU has more memory to spare than the machine: it then "
            "holds the shard being filled.",
        },
    ),
)


@dataclass(frozen=True)
class Group:
    """What belongs on one line: runs of one method under the same circumstances."""

    label: str
    machine: str
    method: str
    cold: bool
    flags: tuple[str, ...]
    models: int

    @classmethod
    def of(cls, run: Run) -> Group:
        """The group of a run."""
        return cls(run.label, run.machine, run.method, run.cold, run.flags, run.models)

    @property
    def circumstances(self) -> str:
        """All but the method, in words."""
        parts = [self.label, "cold" if self.cold else "warm", *self.flags]
        return " ".join(part for part in parts if part)

    @property
    def shard_size(self) -> int:
        """Of the output, in bytes."""
        words = [part for flag in self.flags for part in flag.replace("=", " ").split()]
        if "--out-shard-size" not in words:
            return DEFAULT_SHARD
        text = words[words.index("--out-shard-size") + 1].lower()
        unit = _UNITS.get(text[-1])
        return int(text) if unit is None else int(text[:-1]) * unit

    @property
    def shards_at_once(self) -> int:
        """How many output shards are held: with asynchronous writing, one is being written."""
        return 2 if "--async-write" in self.flags else 1


@dataclass(frozen=True)
class Line:
    """a + b * x, fitted to points of at least two different x."""

    a: float
    b: float
    points: int

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Line | None:
        """The line of least squares; None where there are not two different x."""
        if len({x for x, _ in points}) < 2:
            return None
        x, y = np.array(points).T
        b, a = np.polyfit(x, y, 1)
        return cls(float(a), float(b), len(points))

    def at(self, x: float) -> float:
        """Its value."""
        return self.a + self.b * x


def time_line(runs: Sequence[Run]) -> Line | None:
    """Median seconds of each size by parameters."""
    return Line.through(
        [
            (of_size[0].parameters, middle(of_size, lambda run: run.measured.wall_seconds) or 0.0)
            for of_size in _by_size(runs)
        ]
    )


def memory_line(runs: Sequence[Run], group: Group) -> Line | None:
    """Median anonymous bytes of each size, less the held output, by the largest tensor."""
    points = []
    for of_size in _by_size(runs):
        first = of_size[0]
        output = first.parameters * BYTES_PER_PARAMETER
        held = min(output, group.shards_at_once * group.shard_size)
        peak = middle(of_size, lambda run: run.measured.peak_anonymous_bytes) or 0.0
        points.append((float(first.largest_tensor), peak - held))
    return Line.through(points)


def _by_size(runs: Sequence[Run]) -> list[list[Run]]:
    return [
        [run for run in runs if run.parameters == parameters]
        for parameters in sorted({run.parameters for run in runs})
    ]


def time_row(group: Group, line: Line) -> list[str]:
    """A row of the table of times."""
    return [
        group.method,
        group.circumstances,
        str(line.points),
        f"{line.a:.2f} + {line.b * 1e9:.2f} per 1e9",
        *(number(line.at(model.parameters), 0) for model in MODELS),
    ]


def memory_row(group: Group, line: Line) -> list[str]:
    """A row of the table of memory."""
    return [
        group.method,
        group.circumstances,
        str(line.points),
        f"{line.a / 1e9:.2f} + {line.b:.1f} bytes per element",
        *(
            gigabytes(
                line.at(model.largest_tensor) + model.held(group.shard_size, group.shards_at_once)
            )
            for model in MODELS
        ),
    ]


@click.command()
@click.argument("results", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--label", help="Only of results with this label.")
def main(results: Path, label: str | None) -> None:
    """Predict merges of 7B, 13B and 70B from RESULTS, and say with which flags to run them."""
    groups: dict[Group, list[Run]] = {}
    for run in read(results):
        if run.method != START and label in (None, run.label):
            groups.setdefault(Group.of(run), []).append(run)
    times, memory = [], []
    for group, runs in groups.items():
        by_parameters, by_tensor = time_line(runs), memory_line(runs, group)
        if by_parameters is None or by_tensor is None:
            click.echo(
                f"{group.method} ({group.circumstances}): only one size was measured",
                err=True,
            )
            continue
        times.append(time_row(group, by_parameters))
        if group.method != FLOOR:  # plain copies hold no output
            memory.append(memory_row(group, by_tensor))
    for machine in dict.fromkeys(group.machine for group in groups):
        click.echo(machine)
    names = [model.name for model in MODELS]
    if times:
        click.echo("\nSeconds, as a line through the parameters:\n")
        click.echo(markdown(["method", "measured", "sizes", "line", *names], times))
        click.echo(
            "\nPeak anonymous GB: held output, and the rest as a line through the largest tensor:\n"
        )
        click.echo(markdown(["method", "measured", "sizes", "rest GB", *names], memory))
    click.echo("\nFlags:\n")
    for model in MODELS:
        for flag, why in model.flags.items():
            click.echo(f"- {model.name} `{flag}`: {why}")


if __name__ == "__main__":
    main()
