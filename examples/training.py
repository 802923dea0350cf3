"""Train all weights of a model on drawn items, and write ordinary checkpoints.

In:  a model, a function that draws training items, and how long and how hard to train.
Out: the model, trained in place, and folders of bfloat16 safetensors, configuration and tokenizer.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import click
import torch
from items import Item
from torch.nn import Parameter
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

IGNORED = -100
"""Label of prompts and padding: only answers are learnt."""


@dataclass(frozen=True)
class Training:
    """How long and how hard a model is trained.

    Attributes:
        steps: Steps of the optimizer.
        batch_size: Items in a step.
        learning_rate: The highest learning rate of the run.
        fast: Whether the model computes in bfloat16. The optimizer moves float32 copies of its
            weights, since small moves of bfloat16 would be lost.
    """

    steps: int
    batch_size: int
    learning_rate: float
    fast: bool = False


@dataclass(frozen=True)
class Resumption:
    """Where the state of a training is saved, so that it can resume after being killed.

    Attributes:
        file: File of the weights and the optimizer's state; whoever trains deletes it at the end.
        every: Steps between two saved states.
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
    extra_loss: Callable[[LlamaForCausalLM, int], torch.Tensor] | None = None,
) -> float:
    """Train all weights of `model` in place to continue prompts with their answers.

    The optimizer is AdamW without weight decay. The learning rate rises over the first tenth of the
    steps and then falls along half a cosine. Progress goes to stderr.

    Args:
        model: The model, in float32; a fast training leaves it in bfloat16.
        tokenizer: Its tokenizer.
        draw: Draws a training item.
        training: How long and how hard to train.
        seed: Seed of the drawn items.
        title: Title of the progress bar.
        resumption: Where to save states and to resume from; None to do neither.
        extra_loss: Given the model and the step, returns a scalar that is added to the loss of the
            items.

    Returns:
        The seconds that the training took, with those before the saved state.

    Raises:
        click.ClickException: The saved state is from a training with other settings.
    """
    weights = _Weights(model, training.fast)
    optimizer = torch.optim.AdamW(
        weights.moved,
        lr=training.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=training.fast,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _scale_learning_rate(step / training.steps)
    )
    done, before = 0, 0.0
    if resumption is not None and resumption.file.exists():
        state = _load_state(resumption.file, training, model.device)
        weights.load(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        done, before = state["step"], state["seconds"]
    began = time.monotonic()
    model.train()
    progress = tqdm(total=training.steps, initial=done, desc=title)
    for step, (tokens, labels) in enumerate(
        _draw_batches(tokenizer, draw, training, seed), start=1
    ):
        if step <= done:
            continue
        loss = _compute_loss(model, tokens.to(model.device), labels.to(model.device))
        model.zero_grad()
        torch.autograd.backward(loss if extra_loss is None else loss + extra_loss(model, step))
        weights.take_gradients()
        torch.nn.utils.clip_grad_norm_(weights.moved, 1.0)
        optimizer.step()
        weights.give_back()
        schedule.step()
        progress.update()
        progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
        if resumption is not None and step % resumption.every == 0 and step < training.steps:
            state = {
                "weights": [weight.detach() for weight in weights.moved],
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step,
                "seconds": before + time.monotonic() - began,
                "training": asdict(training),
            }
            _save_state(resumption.file, state)
    progress.close()
    return before + time.monotonic() - began


class _Weights:
    """The weights of a model, and what the optimizer moves: themselves, or float32 copies."""

    def __init__(self, model: LlamaForCausalLM, copied: bool) -> None:
        """Take the weights of a model; if they are copied, the model becomes bfloat16."""
        self._computing = list(model.parameters())
        self.moved = self._computing
        if copied:
            self.moved = [Parameter(weight.detach().float()) for weight in self._computing]
            # Not `model.bfloat16()`, which would also round the frequencies of the positions.
            for weight in self._computing:
                weight.data = weight.data.bfloat16()

    def take_gradients(self) -> None:
        """Give the gradients of the model to what is moved."""
        for moved, weight in zip(self.moved, self._computing, strict=True):
            if moved is not weight:
                moved.grad = None if weight.grad is None else weight.grad.float()

    @torch.no_grad()
    def give_back(self) -> None:
        """Round what was moved to the model's weights."""
        for moved, weight in zip(self.moved, self._computing, strict=True):
            if moved is not weight:
                weight.copy_(moved)

    @torch.no_grad()
    def load(self, values: Sequence[torch.Tensor]) -> None:
        """Replace all weights."""
        for moved, value in zip(self.moved, values, strict=True):
            moved.copy_(value)
        self.give_back()


def _compute_loss(
    model: LlamaForCausalLM, tokens: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Return the mean cross-entropy of the answers; tokens and labels: (items, length)."""
    hidden = model.model(input_ids=tokens).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    answered = targets != IGNORED
    logits = model.lm_head(hidden[answered])
    return cross_entropy(logits.float(), targets[answered])


def save(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write model and tokenizer to `folder` in bfloat16; the model itself becomes bfloat16.

    The files are first written under another name, so a folder of this name is always complete. It
    replaces an older one.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        folder: The folder.
        notes: Name of a file -> its text, for more files in the folder.
    """
    unfinished = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.bfloat16().save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    for name, text in (notes or {}).items():
        (unfinished / name).write_text(text, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _load_state(file: Path, training: Training, device: torch.device) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(file, weights_only=True, map_location=device)
    if state.get("training") != asdict(training):
        raise click.ClickException(
            f"{file} is of a training with other settings; delete it to start over."
        )
    return state


def _save_state(file: Path, state: Mapping[str, object]) -> None:
    """Write a state under another name first, so that a killed training leaves a whole file."""
    unfinished = file.with_suffix(".new")
    torch.save(state, unfinished)
    unfinished.replace(file)


def _scale_learning_rate(progress: float) -> float:
    """Return the share of the highest learning rate after a share of the run, from 0 to 1."""
    if progress < 0.1:
        return 0.02 + 9.8 * progress
    return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * (progress - 0.1) / 0.9))


def _draw_batches(
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[Random], Item],
    training: Training,
    seed: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield tokens and labels, each (items, longest item), padded on the right."""
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
