"""Random activations of random Llamas, as large as those that are observed.

python tests/benchmarks/random_activations.py MODEL FILE --rank 96
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import torch
from mergekit.io.lazy_tensor_loader import ShardedTensorIndex

from dppa_mergekit.checkpoints.headers import Checkpoint
from dppa_mergekit.moments.activations_file import (
    Observation,
    ObservedInputs,
    ObservedLinear,
    write_activations,
)
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.tensor_names import linears_in, natural_order

SHARING = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Linear -> the one whose inputs it shares."""


def write(model: Path, file: Path, rank: int) -> None:
    """Write activations of every linear of a Llama."""
    checkpoint = Checkpoint(str(model), ShardedTensorIndex.from_disk(str(model)))
    groups: dict[str, list[str]] = {}
    for name in sorted(checkpoint.stored(), key=natural_order):
        if linears_in(name, checkpoint.header(name).shape):
            module = name.split(".")[-2]
            first = name.replace(module, SHARING.get(module, module))
            groups.setdefault(first, []).append(name)
    sizes = [checkpoint.header(first).shape[1] for first in groups]
    observation = Observation(
        model=str(model),
        weights=checkpoint.weights_digest(),
        reads="",
        dtype="None",
        prompts=1,
        prompts_sha256="random",
        answered=0,
        tokens=rank,
        rank=rank,
        inputs=tuple(
            ObservedInputs(
                linears=tuple(ObservedLinear(tensor=name) for name in names), tokens=rank
            )
            for names in groups.values()
        ),
    )
    write_activations(file, observation, _draw(sizes, rank))


def _draw(sizes: list[int], rank: int) -> Iterator[SecondMoment]:
    generator = torch.Generator().manual_seed(0)
    for inputs in sizes:
        held = min(rank, inputs)
        random = torch.randn(inputs, held, generator=generator) / inputs**0.5
        # Such shares of the trace were observed in SmolLM2: 0.5, 0.004, 0.0003 and 0.00003 in
        # directions 1, 16, 64 and 256.
        values = inputs * 0.53 * (1.0 + torch.arange(held)) ** -1.8
        rest = torch.full((inputs,), 1 - float(values.sum()) / inputs, dtype=torch.float64)
        yield SecondMoment(random, values, rest)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--rank", type=click.IntRange(min=1), default=96, show_default=True)
def main(model: Path, file: Path, rank: int) -> None:
    """Write random activations of MODEL to FILE."""
    write(model, file, rank)


if __name__ == "__main__":
    main()
