"""The texts on which a model is observed: prompts, with given answers or the model's own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.answers import answer, ending_tokens, padding_token
from dppa_mergekit.live.context import context_of, shorten
from dppa_mergekit.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How prompts become texts.

    Attributes:
        max_new_tokens: The largest number of tokens of a model's own answer; 0 for no answers.
        batch_size: The number of prompts that are answered at once.
        chat: Whether a prompt is put into the model's chat template.
        system_instruction: The system message of the chat; None for none.
    """

    max_new_tokens: int = 64
    batch_size: int = 8
    chat: bool = False
    system_instruction: str | None = None


@dataclass(frozen=True)
class Text:
    """The tokens of a prompt and of its answer.

    The answer may be empty: a decoder reads a prompt with its completion as one text.
    """

    prompt: Sequence[int]
    answer: Sequence[int]


def read_texts(
    name: str,
    prompts: Sequence[Prompt],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
) -> Iterator[Text]:
    """Yield the text of every prompt; the model answers those that have no completion.

    Args:
        name: The name of the model, for messages.
        prompts: The prompts.
        model: The live model.
        tokenizer: Its tokenizer.
        reading: How prompts become texts.

    Raises:
        DppaError: A prompt is empty, or the model has no chat template.
    """
    given = [prompt for prompt in prompts if prompt.completion is not None]
    asked = [prompt for prompt in prompts if prompt.completion is None]
    if given:
        yield from _complete(name, given, model, tokenizer, reading)
    if not asked:
        return
    tokens = [_tokenize(name, prompt.text, tokenizer, reading) for prompt in asked]
    short = shorten(name, tokens, model, min(reading.max_new_tokens, 1))
    if reading.max_new_tokens == 0:
        yield from (Text(prompt, ()) for prompt in short)
        return
    pad, stops = padding_token(tokenizer), ending_tokens(model)
    silent = 0
    for batch in _batches(model, short, reading):
        answers = answer(model, batch, pad, _room(model, batch[0], reading.max_new_tokens))
        for prompt, found in zip(batch, answers.tokens, strict=True):
            tokens_found = found.tolist()
            silent += all(token in stops for token in tokens_found)
            yield Text(prompt, tokens_found)
    if silent:
        LOG.warning(
            "%s: it answers nothing to %d of %d prompts; only the prompts are observed there.",
            name,
            silent,
            len(asked),
        )


def _batches(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], reading: Reading
) -> Iterator[Sequence[Sequence[int]]]:
    """Yield batches of prompts that leave equal room; one that leaves less than wanted is alone."""
    wanted = reading.max_new_tokens
    roomy = [prompt for prompt in prompts if _room(model, prompt, wanted) == wanted]
    for start in range(0, len(roomy), reading.batch_size):
        yield roomy[start : start + reading.batch_size]
    yield from ([prompt] for prompt in prompts if _room(model, prompt, wanted) < wanted)


def _room(model: PreTrainedModel, prompt: Sequence[int], wanted: int) -> int:
    """Return how many tokens an answer may have: so many, or as many as the context leaves."""
    context = context_of(model)
    if context is None or model.config.is_encoder_decoder:
        return wanted
    return min(wanted, context - len(prompt))


def _complete(
    name: str,
    prompts: Sequence[Prompt],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
) -> Iterator[Text]:
    """Yield the texts of prompts with completions, cut to the model's context."""
    if model.config.is_encoder_decoder:
        begins = [_tokenize(name, prompt.text, tokenizer, reading) for prompt in prompts]
        for begin, prompt in zip(shorten(name, begins, model, 0), prompts, strict=True):
            yield Text(begin, tokenizer(prompt.completion or "")["input_ids"])
        return
    wholes = [
        _tokenize(name, prompt.text, tokenizer, reading, prompt.completion or "")
        for prompt in prompts
    ]
    yield from (Text(whole, ()) for whole in shorten(name, wholes, model, 0))


def _tokenize(
    name: str,
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    completion: str = "",
) -> list[int]:
    """Return the tokens of a prompt and a completion, in the model's chat template if asked for."""
    if not reading.chat:
        return list(tokenizer(text + completion)["input_ids"])
    if tokenizer.chat_template is None:
        raise DppaError(f"{name} has no chat template; leave out --apply-chat-template.")
    system = reading.system_instruction
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": text})
    opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(f"{opened}{completion}", add_special_tokens=False)["input_ids"])
