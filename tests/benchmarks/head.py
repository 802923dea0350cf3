"""Measure the gain of passing whole states to a language model's head: the time to a first token.

    python tests/benchmarks/head.py MODEL

MODEL is a checkpoint's folder. It is loaded once by transformers alone and once as the commands of
this package load it, in bfloat16 on the CPU with one thread. Both write one token after the same
prompts of random tokens, in pairs of runs.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import click
import torch
from tables import format_number, format_table
from transformers import AutoModelForCausalLM, PreTrainedModel

from dppa_mergekit.live.loading import load_model
from dppa_mergekit.live.placement import Placement


@click.command()
@click.argument("folder", metavar="MODEL", type=click.Path(path_type=Path, exists=True))
@click.option("--prompts", default=13, show_default=True, help="Prompts in the batch.")
@click.option("--tokens", default=100, show_default=True, help="Tokens of a prompt.")
@click.option("--runs", default=5, show_default=True, help="Pairs of runs.")
def main(folder: Path, prompts: int, tokens: int, runs: int) -> None:
    """Time the first token of a batch without and with the package's hook."""
    torch.set_num_threads(1)
    without = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with_, _ = load_model(folder, Placement(dtype=torch.bfloat16))
    for model in (without, with_):
        model.requires_grad_(False)  # as searches do; otherwise torch copies slices itself
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(without.config.vocab_size, (prompts, tokens), generator=generator)
    pairs = [(write_token(without, batch), write_token(with_, batch)) for _ in range(runs + 1)]
    if not all(torch.equal(a[1], b[1]) for a, b in pairs):
        raise click.ClickException("The two models give different logits.")
    times = [(a[0], b[0]) for a, b in pairs[1:]]  # the first pair warms up
    ratio = median(a / b for a, b in times)
    row = [format_number(median(column)) for column in zip(*times, strict=True)]
    click.echo(
        format_table(["transformers, s", "ours, s", "ratio"], [[*row, format_number(ratio)]])
    )


def write_token(model: PreTrainedModel, batch: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Return the seconds to a token after each prompt, and its logits."""
    began = time.perf_counter()
    written = model.generate(
        batch,
        attention_mask=torch.ones_like(batch),
        max_new_tokens=1,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return time.perf_counter() - began, written.logits[0]


if __name__ == "__main__":
    main()
