"""Time a step of AdaMerging for each granularity and objective, relative to one weight a block.

    python tests/benchmarks/steps.py FOLDER --size 0.2B --method dppa

Three fine-tuned models of the random checkpoints are merged at density 0.2. A step takes 4 texts of
64 random tokens from each of three domains, as `adamerge` takes prompts with answers. All ways are
timed in turn in one process, all models in float32, which CPUs multiply faster than bfloat16. The
table shows medians, and the memory that each needs on top of the merge: for `hidden`, the teachers'
copies are in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from model_sizes import SIZES
from random_models import Family, write_missing
from tables import format_gigabytes, format_table
from weights import load, measure_peak, read_anonymous

from dppa_mergekit import method_table
from dppa_mergekit.adamerging.coefficients import SCOPES
from dppa_mergekit.adamerging.learnable import coefficients_of
from dppa_mergekit.adamerging.losses import DomainLoss, StateTeaching, Teaching
from dppa_mergekit.adamerging.teacher import ANSWER_TOKENS, TOP, Lessons
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.live.source_model import SourceModel
from dppa_mergekit.live.weighted_merge import WeightedMerge

TEXTS, TOKENS, ANSWER = 4, 64, 32
ROUNDS = 3
FLOAT32 = Placement(dtype=torch.float32)


def draw_lessons(words: int) -> Lessons:
    """Return texts of random tokens, with likely tokens drawn at random."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(words, (TEXTS, TOKENS), generator=generator)
    likely = torch.randint(words, (TEXTS, ANSWER_TOKENS, TOP), generator=generator)
    logits = torch.randn(TEXTS, ANSWER_TOKENS, TOP, generator=generator)
    begin = torch.full((TEXTS,), TOKENS - ANSWER)
    end = torch.full((TEXTS,), TOKENS)
    return Lessons(tokens, begin, end, likely, logits.log_softmax(-1) - 0.1)


def make_step(
    merge: WeightedMerge, granularity: str, losses: list[DomainLoss]
) -> Callable[[], None]:
    """Return a step of the descent, without Adam's own arithmetic."""
    learned = coefficients_of(merge, granularity)
    places = torch.arange(TEXTS)

    def step() -> None:
        learned.set(learned.start)
        with learned.gradients(learned.start), torch.enable_grad():
            for loss in losses:
                torch.autograd.backward(loss.of(merge.model, places))

    return step


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--size", type=click.Choice(list(SIZES)), default="0.2B", show_default=True)
@click.option(
    "--method",
    type=click.Choice(method_table.learnable()),
    default=method_table.DPPA.name,
    show_default=True,
)
def main(folder: Path, size: str, method: str) -> None:
    """Measure the checkpoints below FOLDER; missing ones are written first."""
    family = write_missing(Family(folder, size, 3))
    merge = load(family, method, FLOAT32)
    lessons = draw_lessons(merge.model.config.vocab_size)
    models = [name for name in family.names if name != "base"]
    before = read_anonymous()
    granularities = [
        each for each in SCOPES if each != "partition" or method in method_table.amplified()
    ]
    distill: list[DomainLoss] = [Teaching(lessons) for _ in models]
    ways = {(each, "distill"): make_step(merge, each, distill) for each in granularities}
    peaks = {way: measure_peak(step) - before for way, step in ways.items()}
    teachers = [SourceModel(str(family.path / name), FLOAT32).load()[0] for name in models]
    hidden: list[DomainLoss] = [
        StateTeaching(lessons, teacher.requires_grad_(False)) for teacher in teachers
    ]
    ways["block", "hidden"] = make_step(merge, "block", hidden)
    peaks["block", "hidden"] = measure_peak(ways["block", "hidden"]) - before
    seconds: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, step in ways.items():
            begun = time.perf_counter()
            step()
            seconds[way].append(time.perf_counter() - begun)
    medians = {way: statistics.median(found) for way, found in seconds.items()}
    rows = [
        [
            *way,
            f"{medians[way]:.2f} s",
            f"{medians[way] / medians['block', 'distill']:.2f} x",
            format_gigabytes(peaks[way]),
        ]
        for way in ways
    ]
    click.echo(f"{size}, {method}, {torch.get_num_threads()} threads\n")
    click.echo(format_table(["granularity", "objective", "a step", "of block", "on top, GB"], rows))


if __name__ == "__main__":
    main()
