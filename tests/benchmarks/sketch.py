"""Measure what streaming loses: second moments by a sketch against those by all pairs of inputs.

    python tests/benchmarks/sketch.py MODEL PROMPTS --rank 96 --rank 256

For every kind of linear, the table shows the error of the low rank in the Frobenius norm, as a
share of the norm of the moments: of the best low rank there is, and of the sketch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import click
import torch
from tables import format_table

from dppa_mergekit.live.source_model import SourceModel
from dppa_mergekit.observation.moment_sketch import MomentSketch
from dppa_mergekit.observation.observe import linears_of, run
from dppa_mergekit.observation.operations import ProductObserver
from dppa_mergekit.observation.texts import Reading, read_texts
from dppa_mergekit.prompts import read_prompts
from dppa_mergekit.tensor_names import Linear


@dataclass
class Inputs:
    """The inputs of one linear: all pairs of them, and sketches of several ranks."""

    pairs: torch.Tensor
    sketches: Mapping[int, MomentSketch]

    def take(self, vectors: torch.Tensor) -> None:
        """Take the inputs of one product."""
        wide = vectors.double()
        self.pairs += wide.t() @ wide
        for sketch in self.sketches.values():
            sketch.add(vectors)

    def errors(self, rank: int) -> tuple[float, float]:
        """Return the errors of the best low rank and of the sketch's, as shares of the norm."""
        sketch = self.sketches[rank]
        moments = self.pairs / sketch.vectors
        size = float(moments.norm())
        found = sketch.moment()
        vectors = found.vectors.double()
        low_rank = (vectors * found.values) @ vectors.t()
        left_out = torch.linalg.eigvalsh(moments)[: -len(found.values)]
        return float(left_out.norm()) / size, float((moments - low_rank).norm()) / size


@dataclass
class Collector:
    """The inputs of all linears of a model."""

    ranks: Sequence[int]
    inputs: dict[Linear, Inputs] = field(default_factory=dict)

    def take(self, linear: Linear, _: bool, vectors: torch.Tensor) -> None:
        """Take the inputs of one product."""
        if linear not in self.inputs:
            size = vectors.shape[1]
            sketches = {rank: MomentSketch(size, rank, vectors.device) for rank in self.ranks}
            self.inputs[linear] = Inputs(torch.zeros(size, size, dtype=torch.float64), sketches)
        self.inputs[linear].take(vectors)


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("prompts", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--rank", "ranks", type=click.IntRange(min=1), multiple=True, default=[96, 256])
@click.option("--max-new-tokens", type=click.IntRange(min=0), default=64, show_default=True)
def main(model: Path, prompts: Path, ranks: tuple[int, ...], max_new_tokens: int) -> None:
    """Print the errors of low ranks of the inputs of MODEL on PROMPTS."""
    live, tokenizer = SourceModel(str(model)).load()
    collector, tokens = Collector(ranks), 0
    texts = read_texts(model.name, read_prompts(prompts), live, tokenizer, Reading(max_new_tokens))
    for text in texts:
        with ProductObserver(linears_of(live), collector.take):
            run(live, text)
        tokens += len(text.prompt) + len(text.answer)
    kinds: dict[str, list[Inputs]] = {}
    for linear, inputs in collector.inputs.items():
        kinds.setdefault(linear.tensor.removesuffix(".weight").split(".")[-1], []).append(inputs)
    rows = []
    for kind, of_kind in kinds.items():
        for rank in ranks:
            errors = [inputs.errors(rank) for inputs in of_kind]
            best, sketched = (mean(values) for values in zip(*errors, strict=True))
            rows.append([kind, str(rank), f"{best:.4f}", f"{sketched:.4f}"])
    click.echo(f"{tokens} tokens")
    click.echo(format_table(["linear", "rank", "best", "sketch"], rows))


if __name__ == "__main__":
    main()
