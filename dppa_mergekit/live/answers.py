"""The greedy answers of a live model to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answers:
    """Answers to a batch of prompts.

    Attributes:
        tokens: The tokens of every answer, on the CPU; the last one ends the answer, unless the
            answer was cut.
        logits: Of every step, (prompts, vocabulary).
    """

    tokens: Sequence[torch.Tensor]
    logits: Sequence[torch.Tensor]

    def log_probabilities(self) -> torch.Tensor:
        """Return (prompts, longest answer, vocabulary) logarithms of probabilities, in float32."""
        return torch.stack(list(self.logits), 1).float().log_softmax(-1)


@torch.no_grad()
def answer(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int, longest: int
) -> Answers:
    """Let a model answer a batch of prompts greedily.

    Args:
        model: A live model in evaluation mode.
        prompts: The tokens of every prompt, at least one.
        pad: The token that pads shorter prompts.
        longest: The largest number of tokens of an answer, at least 1.
    """
    width = max(map(len, prompts))
    # Padded on the left, so that all answers begin at the same position.
    padding = [width - len(prompt) for prompt in prompts]
    tokens = torch.tensor(
        [[pad] * left + list(prompt) for left, prompt in zip(padding, prompts, strict=True)]
    )
    mask = torch.tensor([[0] * left + [1] * (width - left) for left in padding])
    answered = model.generate(  # type: ignore[operator]
        input_ids=tokens.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=longest,
        do_sample=False,
        pad_token_id=pad,
        return_dict_in_generate=True,
        output_logits=True,
    )
    begin = 1 if model.config.is_encoder_decoder else width
    answers = answered.sequences[:, begin:].cpu()
    return Answers([_cut_at_end(tokens, model) for tokens in answers], answered.logits)


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of the token that pads; one that ends a text where there is none."""
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id or 0
    return int(pad)


def ending_tokens(model: PreTrainedModel) -> list[int]:
    """Return the tokens that end a model's answers."""
    stops = getattr(model.generation_config, "eos_token_id", None)
    return [stop for stop in (stops if isinstance(stops, list) else [stops]) if stop is not None]


def _cut_at_end(tokens: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """Cut an answer after the first token that ends it."""
    stops = ending_tokens(model)
    for index, token in enumerate(tokens.tolist()):
        if token in stops:
            return tokens[: index + 1]
    return tokens
