"""A tiny Llama and its tokenizer: made, trained on items of `domains`, saved as a checkpoint.

In:  a function that draws training items, and how long and how hard to train.
Out: checkpoints as anyone would publish them: bfloat16 safetensors, configuration, tokenizer.

The model is an ordinary Llama with grouped-query attention and tied embeddings, small enough to
train on two cores in about a minute; the tokenizer has one token per word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from domains import VOCABULARY, Item
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<pad>", "<eos>", "<unk>"]
IGNORED = -100  # label of the prompt and of padding: only answers are learnt


@dataclass(frozen=True)
class Training:
    """How long and how hard a model is trained; `learning_rate` is the highest of the run."""

    steps: int
    batch_size: int
    learning_rate: float


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of `domains.VOCABULARY`; blanks separate words and carry no meaning."""
    words = SPECIAL_TOKENS + VOCABULARY
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=64,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 0.8 million parameters with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            initializer_range=0.06,  # so small a model learns three times faster than from 0.02
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[Random], Item],
    training: Training,
    seed: int,
    title: str,
) -> None:
    """Train all weights of `model` in place to continue prompts with their answers.

    AdamW without weight decay; the learning rate rises over the first tenth and then falls along a
    half cosine. Progress goes to stderr under `title`.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _learning_rate_factor(step / training.steps)
    )
    model.train()
    progress = tqdm(_batches(tokenizer, draw, training, seed), total=training.steps, desc=title)
    for tokens, labels in progress:
        hidden = model.model(input_ids=tokens).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        answered = targets != IGNORED
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[answered]), targets[answered])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model and tokenizer to `folder` in bfloat16; the model itself becomes bfloat16."""
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
    numbers = tokenizer.get_vocab()
    pad, end = numbers["<pad>"], numbers["<eos>"]
    random = Random(seed)
    for _ in range(training.steps):
        items = [draw(random) for _ in range(training.batch_size)]
        prompts = [[numbers[word] for word in item.prompt.split()] for item in items]
        answers = [[numbers[word] for word in item.answer.split()] + [end] for item in items]
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        tokens = torch.full((len(items), length), pad)
        labels = torch.full((len(items), length), IGNORED)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            stop = len(prompt) + len(answer)
            tokens[row, :stop] = torch.tensor(prompt + answer)
            labels[row, len(prompt) : stop] = torch.tensor(answer)
        yield tokens, labels
