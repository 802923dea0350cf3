"""Observe what enters the linears of one live model."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from dppa_mergekit.errors import DppaError
from dppa_mergekit.moments.activations_file import Observation
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.observation.input_collector import InputCollector
from dppa_mergekit.observation.operations import ProductObserver
from dppa_mergekit.observation.texts import Reading, Text, read_texts
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.tensor_names import linears_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """A model that is observed, as it is stored.

    Attributes:
        model: The model, as the recipe spells it.
        weights: Hash of its weights (`Checkpoint.weights_digest`).
        reads: Hash of its weights and of all files by which it reads and answers.
        dtype: The dtype in which it is observed, as asked for.
    """

    model: str
    weights: str
    reads: str
    dtype: str


@dataclass(frozen=True)
class Observing:
    """How a model is observed.

    Attributes:
        rank: The largest rank of the moments, at least 1.
        reading: How prompts become texts.
    """

    rank: int
    reading: Reading


def observe(
    subject: Subject,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    observing: Observing,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Observation, Sequence[SecondMoment]]:
    """Return the moments of the inputs of a model's linears, and what they are of.

    Args:
        subject: The model, as it is stored.
        model: The live model.
        tokenizer: Its tokenizer.
        prompts: At least one prompt.
        observing: How it is observed.
        progress: Called after every text.

    Raises:
        DppaError: A prompt cannot be used, an input is not finite, or no linear was called.
    """
    name = subject.model
    linears = linears_of(model)
    collector = InputCollector(name, observing.rank)
    tokens = 0
    # One text at a time: experts do not see which tokens are padding.
    for text in read_texts(name, prompts, model, tokenizer, observing.reading):
        with ProductObserver(linears, collector.take):
            run(model, text)
        tokens += len(text.prompt) + len(text.answer)
        progress()
    unused = tuple(tensor for tensor in linears if tensor not in collector.tensors())
    if len(unused) == len(linears):
        raise DppaError(f"{name}: no linear was called; it has none, or computes in other ways.")
    if unused:
        LOG.warning(
            "%s: no token reached %d of %d tensors with linears (first: %s); a merge takes moments "
            "from their deltas.",
            name,
            len(unused),
            len(linears),
            unused[0],
        )
    observation = Observation(
        **asdict(subject),
        prompts=len(prompts),
        prompts_sha256=prompts_digest(prompts, observing.reading),
        answered=0
        if observing.reading.max_new_tokens == 0
        else sum(prompt.completion is None for prompt in prompts),
        tokens=tokens,
        rank=observing.rank,
        inputs=tuple(collector.inputs()),
        unused=unused,
    )
    return observation, list(collector.moments())


def prompts_digest(prompts: Sequence[Prompt], reading: Reading) -> str:
    """Return a hash of all that the texts depend on beside the model."""
    content = [[asdict(prompt) for prompt in prompts], asdict(reading)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def linears_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Name -> live tensor that holds linears, or is an output head of its own."""
    # Stacked experts then multiply one by one, by functions that can be observed.
    model.set_experts_implementation("eager")
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tied = getattr(embeddings, "weight", None)
    of_head = getattr(head, "weight", None)
    return {
        name: parameter.data
        for name, parameter in model.named_parameters()
        if linears_in(name, parameter.shape) or (parameter is of_head and parameter is not tied)
    }


@torch.no_grad()
def run(model: PreTrainedModel, text: Text) -> None:
    """Compute a text once, for what enters the linears."""
    prompt = torch.tensor([list(text.prompt)], device=model.device)
    answer = torch.tensor([list(text.answer)], dtype=prompt.dtype, device=model.device)
    if not model.config.is_encoder_decoder:
        model(input_ids=torch.cat([prompt, answer], 1), use_cache=False)
        return
    start = model.config.decoder_start_token_id or 0
    begin = torch.full_like(prompt[:, :1], start)
    model(input_ids=prompt, decoder_input_ids=torch.cat([begin, answer], 1), use_cache=False)
