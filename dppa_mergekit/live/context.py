"""Prompts cut to the context of a live model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dppa_mergekit.errors import DppaError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOG = logging.getLogger(__name__)


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
    context = context_of(model)
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


def context_of(model: PreTrainedModel) -> int | None:
    """Return the number of tokens that a model can read; None if it has no such limit."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if context is None else int(context)
