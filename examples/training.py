"""Full fine-tuning of a model on drawn items; checkpoints as anyone would publish them.

In:  a model, a function that draws training items, and how long and how hard to train.
Out: the model trained in place, and folders of bfloat16 safetensors, configuration and tokenizer.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import click
import torch
from items import Item
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED = -100  # label of the prompt and of padding: only answers are learnt


@dataclass(frozen=True)
class Training:
    """How long and how hard a model is trained.

    Attributes:
        steps: Of the optimizer.
        batch_size: Items in a step.
        learning_rate: The highest of the run.
        fast: Whether matrices are multiplied in bfloat16 and the optimizer is fused; the weights
            stay float32.
    """

    steps: int
    batch_size: int
    learning_rate: float
    fast: bool = False


@dataclass(frozen=True)
class Resumption:
    """Where an unfinished training is kept, so that a killed one goes on.

    Attributes:
        file: Of the weights and the optimizer's state; deleted when training has ended.
        every: Steps from one state that is kept to the next.
    """

    file: Path
    every: int


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[Random], Item],
    training: Training,
    seed: int,
    title: str,
    resumption: Resumption | None = None,
    beside: Callable[[LlamaForCausalLM, int], torch.Tensor] | None = None,
) -> None:
    """Train all weights of `model` in place to continue prompts with their answers.

    AdamW without weight decay; the learning rate rises over the first tenth and then falls along a
    half cosine. Progress goes to stderr under `title`. A loss `beside`, given the model and the
    step, is added to that of the items.

    Raises:
        click.ClickException: What is kept is of a training with other settings.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=training.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=training.fast,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate_factor(step / training.steps)
    )
    started = 0
    if resumption is not None and resumption.file.exists():
        state = torch.load(resumption.file, weights_only=True, map_location=model.device)
        if state.get("training") != asdict(training):
            raise click.ClickException(
                f"{resumption.file} is of a training with other settings; delete it to start anew."
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        started = state["step"]
    model.train()
    progress = tqdm(total=training.steps, initial=started, desc=title)
    for step, (tokens, labels) in enumerate(_batches(tokenizer, draw, training, seed), start=1):
        if step <= started:
            continue
        tokens, labels = tokens.to(model.device), labels.to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=training.fast):
            hidden = model.model(input_ids=tokens).last_hidden_state[:, :-1]
            targets = labels[:, 1:]
            answered = targets != IGNORED
            logits = model.lm_head(hidden[answered])
            added = None if beside is None else beside(model, step)
        loss = torch.nn.functional.cross_entropy(logits.float(), targets[answered])
        optimizer.zero_grad()
        torch.autograd.backward(loss if added is None else loss + added)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.update()
        progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
        if resumption is not None and step % resumption.every == 0 and step < training.steps:
            written = resumption.file.with_suffix(".new")
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step,
                "training": asdict(training),
            }
            torch.save(state, written)
            written.replace(resumption.file)
    progress.close()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer to `folder` in bfloat16; the model itself becomes bfloat16.

    A folder of that name is a whole checkpoint: it takes the name, and the place of an older one,
    when all is written.
    """
    unfinished = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.bfloat16().save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _learning_rate_factor(progress: float) -> float:
    """The share of the highest learning rate, for a share of the run from 0 to 1."""
    if progress < 0.1:
        return 0.02 + 9.8 * progress
    return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * (progress - 0.1) / 0.9))


def _batches(
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[Random], Item],
    training: Training,
    seed: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and labels, each (items, longest item), padded on the right."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    random = Random(seed)
    for _ in range(training.steps):
        items = [draw(random) for _ in range(training.batch_size)]
        prompts = tokenizer([item.prompt for item in items])["input_ids"]
        answers = tokenizer([f" {item.answer}" for item in items])["input_ids"]
        length = 1 + max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        tokens = torch.full((len(items), length), pad)
        labels = torch.full((len(items), length), IGNORED)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            stop = len(prompt) + len(answer) + 1
            tokens[row, :stop] = torch.tensor([*prompt, *answer, end])
            labels[row, len(prompt) : stop] = torch.tensor([*answer, end])
        yield tokens, labels
