"""What AdaMerging descends: the loss of a merge on the prompts of one domain.

Every loss is the mean over examples of something of each example by itself; none is of logits that
were averaged over a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from dppa_mergekit.adamerging.teacher import divergence, widened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dppa_mergekit.adamerging.teacher import Lessons


class DomainLoss(Protocol):
    """The examples of one domain, and the loss of a model on them."""

    @property
    def number(self) -> int:
        """How many examples there are."""
        ...

    def of(self, model: PreTrainedModel, places: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar, on the examples at some places."""
        ...


@dataclass(frozen=True)
class Entropy:
    """The entropy of the next token after a prompt (AdaMerging, arXiv 2310.02575).

    Attributes:
        prompts: The tokens of each, at least one.
        pad: Any token.
    """

    prompts: Sequence[Sequence[int]]
    pad: int = 0

    @property
    def number(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)

    def of(self, model: PreTrainedModel, places: torch.Tensor) -> torch.Tensor:
        """The mean over prompts of the entropy in nats."""
        chosen = [self.prompts[place] for place in places.tolist()]
        logits = _logits(model, chosen, self.pad)
        ends = torch.tensor([len(each) - 1 for each in chosen], device=logits.device)
        last = logits[torch.arange(len(chosen), device=logits.device), ends]
        said = widened(last).log_softmax(-1)
        return -(said.exp() * said).sum(-1).mean()


@dataclass(frozen=True)
class Completion:
    """The cross-entropy of given completions.

    Attributes:
        examples: The tokens of each prompt with its completion.
        begins: Where the completion begins: at 1 or later, before the end.
        pad: Any token.
    """

    examples: Sequence[Sequence[int]]
    begins: Sequence[int]
    pad: int = 0

    @property
    def number(self) -> int:
        """How many examples there are."""
        return len(self.examples)

    def of(self, model: PreTrainedModel, places: torch.Tensor) -> torch.Tensor:
        """The mean over examples of the mean over their completions' tokens, in nats."""
        chosen = [self.examples[place] for place in places.tolist()]
        logits = _logits(model, chosen, self.pad)
        losses = []
        for row, (tokens, place) in enumerate(zip(chosen, places.tolist(), strict=True)):
            begin = self.begins[place]
            # What is said of a token stands at the place before it.
            said = widened(logits[row, begin - 1 : len(tokens) - 1])
            wanted = torch.tensor(tokens[begin:], device=said.device)
            losses.append(torch.nn.functional.cross_entropy(said, wanted))
        return torch.stack(losses).mean()


@dataclass(frozen=True)
class Teaching:
    """The divergence to what the domain's fine-tuned model answered.

    Attributes:
        lessons: Its answers.
    """

    lessons: Lessons

    @property
    def number(self) -> int:
        """How many answers there are."""
        return self.lessons.number

    def of(self, model: PreTrainedModel, places: torch.Tensor) -> torch.Tensor:
        """The mean over answers of the mean divergence over their tokens, in nats."""
        return divergence(model, self.lessons.some(places))


def _logits(model: PreTrainedModel, examples: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """(examples, longest, vocabulary); padded on the right, where no causal model looks."""
    tokens = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(each) for each in examples], batch_first=True, padding_value=pad
    ).to(model.device)
    lengths = torch.tensor([len(each) for each in examples], device=tokens.device)
    places = torch.arange(tokens.shape[1], device=tokens.device)
    logits: torch.Tensor = model(
        input_ids=tokens, attention_mask=(places < lengths[:, None]).long(), use_cache=False
    ).logits
    return logits
