"""What handing whole states to a language model's head is worth: the time to a first token.

    python tests/benchmarks/head.py MODEL

MODEL is a checkpoint's folder. It is loaded by transformers alone and as our commands load it, in
bfloat16 on the CPU, in one thread; both write one token after the same prompts of random tokens,
in pairs.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import click
import torch
from tables import markdown, number
from transformers import AutoModelForCausalLM, PreTrainedModel

from dppa_mergekit.live.loading import load_model


@click.command()
@click.argument("folder", metavar="MODEL", type=click.Path(path_type=Path, exists=True))
@click.option("--prompts", default=13, show_default=True, help="Prompts in the batch.")
@click.option("--tokens", default=100, show_default=True, help="Tokens of a prompt.")
@click.option("--runs", default=5, show_default=True, help="Pairs.")
def main(folder: Path, prompts: int, tokens: int, runs: int) -> None:
    """Time the first token of a batch, without and with our hook."""
    torch.set_num_threads(1)
    without = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with_, _ = load_model(folder, "cpu", torch.bfloat16)
    for model in (without, with_):
        model.requires_grad_(False)  # as searches do; torch copies slices itself otherwise
    generator = torch.Generator().manual_seed(0)
    batch = torch.randint(without.config.vocab_size, (prompts, tokens), generator=generator)
    pairs = [(first_token(without, batch), first_token(with_, batch)) for _ in range(runs + 1)]
    if not all(torch.equal(a[1], b[1]) for a, b in pairs):
        raise click.ClickException("The two give other logits.")
    times = [(a[0], b[0]) for a, b in pairs[1:]]  # the first pair warms up
    ratio = median(a / b for a, b in times)
    row = [number(median(column)) for column in zip(*times, strict=True)]
    click.echo(markdown(["transformers, s", "ours, s", "ratio"], [[*row, number(ratio)]]))


def first_token(model: PreTrainedModel, batch: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds to a token after each prompt, and its logits."""
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
