"""The losses that AdaMerging descends: of a live merge on the examples of one domain.

Every loss is computed for each example by itself and then averaged over the batch; logits are
never averaged over a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from dppa_mergekit.adamerging.teacher import (
    distance,
    divergence,
    divergence_of,
    read_lessons,
    widen,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dppa_mergekit.adamerging.teacher import Lessons


class DomainLoss(Protocol):
    """The examples of one domain, and the loss of a model on them."""

    @property
    def number(self) -> int:
        """The number of examples."""
        ...

    def of(self, model: PreTrainedModel, indices: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar, on some examples.

        Args:
            model: A live causal language model.
            indices: (batch,) int64 indices of the examples.
        """
        ...


@dataclass(frozen=True)
class Entropy:
    """The entropy of the next token after a prompt (AdaMerging, arXiv 2310.02575).

    Attributes:
        prompts: The tokens of every prompt, at least one.
        pad: The token that pads a batch; any token will do.
    """

    prompts: Sequence[Sequence[int]]
    pad: int = 0

    @property
    def number(self) -> int:
        """The number of prompts."""
        return len(self.prompts)

    def of(self, model: PreTrainedModel, indices: torch.Tensor) -> torch.Tensor:
        """Return the mean entropy over some prompts, in nats."""
        prompts = [self.prompts[index] for index in indices.tolist()]
        logits = _logits(model, prompts, self.pad)
        ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=logits.device)
        last = logits[torch.arange(len(prompts), device=logits.device), ends]
        logarithms = widen(last).log_softmax(-1)
        return -(logarithms.exp() * logarithms).sum(-1).mean()


@dataclass(frozen=True)
class Completion:
    """The cross-entropy of given completions.

    Attributes:
        examples: The tokens of every prompt, followed by those of its completion.
        begins: For every example the index of the completion's first token: at least 1, and less
            than the number of tokens.
        pad: The token that pads a batch; any token will do.
    """

    examples: Sequence[Sequence[int]]
    begins: Sequence[int]
    pad: int = 0

    @property
    def number(self) -> int:
        """The number of examples."""
        return len(self.examples)

    def of(self, model: PreTrainedModel, indices: torch.Tensor) -> torch.Tensor:
        """Return the mean over examples of the mean over their completion's tokens, in nats."""
        examples = [self.examples[index] for index in indices.tolist()]
        logits = _logits(model, examples, self.pad)
        losses = []
        for row, (tokens, index) in enumerate(zip(examples, indices.tolist(), strict=True)):
            begin = self.begins[index]
            # The logits at a position predict the token at the next one.
            predicted = widen(logits[row, begin - 1 : len(tokens) - 1])
            completion = torch.tensor(tokens[begin:], device=predicted.device)
            losses.append(torch.nn.functional.cross_entropy(predicted, completion))
        return torch.stack(losses).mean()


@dataclass(frozen=True)
class Teaching:
    """The divergence from the answers of the domain's fine-tuned model.

    Attributes:
        lessons: The prompts and the teacher's answers.
    """

    lessons: Lessons

    @property
    def number(self) -> int:
        """The number of answers."""
        return self.lessons.number

    def of(self, model: PreTrainedModel, indices: torch.Tensor) -> torch.Tensor:
        """Return the mean over answers of the mean divergence over their tokens, in nats."""
        return divergence(model, self.lessons.some(indices))


@dataclass(frozen=True)
class StateTeaching:
    """The divergence from the answers of the domain's model, and the distance of hidden states.

    The divergence is that of `Teaching`; the distance is a mean over tokens and layers of relative
    squared errors (`teacher.distance`).

    Attributes:
        lessons: The prompts and the teacher's answers.
        teacher: The live model that gave the lessons, which reads them again in every step.
    """

    lessons: Lessons
    teacher: PreTrainedModel

    @property
    def number(self) -> int:
        """The number of answers."""
        return self.lessons.number

    def of(self, model: PreTrainedModel, indices: torch.Tensor) -> torch.Tensor:
        """Return the sum of divergence, in nats, and distance, 0 for equal states."""
        lessons = self.lessons.some(indices).to(model.device)
        with torch.no_grad():
            _, wanted = read_lessons(self.teacher, lessons, hidden_states=True)
        logits, states = read_lessons(model, lessons, hidden_states=True)
        return divergence_of(logits, lessons) + distance(states, wanted, lessons)


def _logits(model: PreTrainedModel, examples: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """(examples, longest, vocabulary); padded on the right, where no causal model looks."""
    tokens = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(example) for example in examples], batch_first=True, padding_value=pad
    ).to(model.device)
    lengths = torch.tensor([len(example) for example in examples], device=tokens.device)
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    logits: torch.Tensor = model(
        input_ids=tokens, attention_mask=(positions < lengths[:, None]).long(), use_cache=False
    ).logits
    return logits
