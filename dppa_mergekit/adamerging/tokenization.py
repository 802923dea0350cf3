"""Prompts as tokens: with their completions, and cut to the model's context."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dppa_mergekit.adamerging.losses import Completion
from dppa_mergekit.errors import DppaError
from dppa_mergekit.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)


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
        DppaError: There are no examples, or a prompt or a completion has no tokens.
    """
    tokens: list[list[int]] = []
    begins: list[int] = []
    for example in examples:
        prompt = tokenizer(example.text)["input_ids"]
        whole = tokenizer(f"{example.text}{example.completion}")["input_ids"]
        if not 0 < len(prompt) < len(whole):
            raise DppaError(
                f"The prompts of {domain}: {example.text[:40]!r} or its completion has no tokens."
            )
        tokens.append(whole)
        begins.append(len(prompt))
    short = shorten(domain, tokens, model, 0)
    moved = [
        max(1, begin - (len(whole) - len(cut)))
        for begin, whole, cut in zip(begins, tokens, short, strict=True)
    ]
    return Completion(short, moved)


def shorten(
    domain: str, tokens: Sequence[list[int]], model: PreTrainedModel, room: int
) -> list[list[int]]:
    """Cut prompts on the left, so that they and an answer fit the model's context.

    Args:
        domain: The name of the domain, for messages.
        tokens: The tokens of the prompts.
        model: The live model whose context counts.
        room: The number of tokens to leave for an answer.

    Raises:
        DppaError: There are no prompts, or one of them is empty.
    """
    if not tokens or not all(tokens):
        raise DppaError(f"The prompts of {domain} are missing, or one of them is empty.")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return list(tokens)
    longest = max(1, context - room)
    long = sum(len(prompt) > longest for prompt in tokens)
    if long:
        LOG.warning(
            "%s: %d of %d prompts do not fit the context of %d tokens; they are cut on the left.",
            domain,
            long,
            len(tokens),
            context,
        )
    return [prompt[-longest:] for prompt in tokens]
