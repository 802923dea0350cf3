"""Prompts as tokens, with their completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from dppa_mergekit.adamerging.losses import Completion
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.context import shorten
from dppa_mergekit.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_completions(prompts: Mapping[str, Sequence[Prompt]]) -> None:
    """Refuse prompts without completions.

    Args:
        prompts: Domain -> its prompts.

    Raises:
        DppaError: There are no prompts, or one has no completion.
    """
    if not prompts:
        raise DppaError("Objective loss needs prompts with completions, in .jsonl files.")
    for name, examples in prompts.items():
        missing = sum(not example.completion for example in examples)
        if missing:
            raise DppaError(
                f"The prompts of {name}: {missing} of {len(examples)} have no completion, which "
                f"objective loss needs."
            )


def completion_loss(
    domain: str,
    examples: Sequence[Prompt],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> Completion:
    """Return the loss of given completions, cut to the model's context.

    Args:
        domain: The name of the domain, for messages.
        examples: Prompts with completions.
        model: The live model whose context counts.
        tokenizer: Its tokenizer.

    Raises:
        DppaError: There are no examples, or a prompt or a completion has no token of its own.
    """
    tokens: list[list[int]] = []
    begins: list[int] = []
    for example in examples:
        prompt = tokenizer(example.text)["input_ids"]
        whole = tokenizer(f"{example.text}{example.completion}")["input_ids"]
        # A token may hold the end of the prompt and the beginning of the completion.
        pairs = zip(prompt, whole, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if not 0 < shared < len(whole):
            raise DppaError(
                f"The prompts of {domain}: {example.text[:40]!r} or its completion has no token of "
                f"its own."
            )
        tokens.append(whole)
        begins.append(shared)
    short = shorten(domain, tokens, model, 0)
    moved = [
        max(1, begin - (len(whole) - len(cut)))
        for begin, whole, cut in zip(begins, tokens, short, strict=True)
    ]
    return Completion(short, moved)
