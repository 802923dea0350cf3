"""A fine-tuned model as the teacher of its pruned self: its own answers, and how sure it was.

The teacher answers prompts once, greedily; of every token of its answers its most likely tokens
are kept with their logarithms of probability. No labels are needed. The loss of a model is the
Kullback-Leibler divergence to them, all other tokens being one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import safe_open

from dppa_mergekit.errors import DppaError
from dppa_mergekit.storage.output_files import stage_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANSWER_TOKENS = 32
"""The longest answer."""

TOP = 16
"""How many of the most likely tokens are kept."""

LEAST = 1e-6
"""No probability of all other tokens is taken to be less: its logarithm would be noise."""


@dataclass(frozen=True)
class Lessons:
    """Prompts, the teacher's answers, and what it found likely.

    Attributes:
        tokens: (lessons, length) prompt and answer, padded on the right.
        begin: (lessons,) where the answer begins.
        end: (lessons,) where it ends.
        likely: (lessons, ANSWER_TOKENS, TOP) the most likely tokens at each place of an answer.
        logarithm: (lessons, ANSWER_TOKENS, TOP) the logarithms of their probabilities.
    """

    tokens: torch.Tensor
    begin: torch.Tensor
    end: torch.Tensor
    likely: torch.Tensor
    logarithm: torch.Tensor

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.tokens)

    def some(self, places: torch.Tensor) -> Lessons:
        """Those at some places, padded no longer than they need."""
        longest = int(self.end[places].max())
        return Lessons(
            self.tokens[places, :longest],
            self.begin[places],
            self.end[places],
            self.likely[places],
            self.logarithm[places],
        )

    def words(self, rows: int) -> list[int]:
        """Tokens of the texts, and of those found likely the ones below `rows`, in order.

        Beyond are words that a model of so many rows lacks: to it they are among all others.
        """
        in_text = torch.arange(self.tokens.shape[1]) < self.end[:, None]
        in_answer = torch.arange(ANSWER_TOKENS) < (self.end - self.begin)[:, None]
        likely = self.likely[in_answer]
        return sorted({*self.tokens[in_text].tolist(), *likely[likely < rows].tolist()})

    def to(self, device: torch.device) -> Lessons:
        """The same on another device."""
        return Lessons(*(each.to(device) for each in vars(self).values()))

    def save(self, path: Path, key: str) -> None:
        """Write them to a safetensors file, under a key that says what they are of."""
        with stage_file(path) as staged:
            safetensors.torch.save_file(vars(self), staged, metadata={"key": key})

    @classmethod
    def read(cls, path: Path, key: str) -> Lessons | None:
        """Those of a file, if it is there, whole, and of this key."""
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") != key:
                    return None
                return cls(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, TypeError, safetensors.SafetensorError):
            return None


def key_of(teacher: str, prompts: Sequence[Sequence[int]]) -> str:
    """What lessons depend on, as text: a fingerprint of the teacher, and the prompts."""
    depends = [teacher, ANSWER_TOKENS, TOP, [list(each) for each in prompts]]
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()


@torch.no_grad()
def teach(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
) -> Lessons:
    """Let a model answer prompts, and keep what it found likely.

    Args:
        model: The teacher, a causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: Their tokens; at least one prompt of at least one token.
        batch_size: Of the answering.

    Raises:
        DppaError: There are no prompts.
    """
    if not prompts or not all(prompts):
        raise DppaError("A prompt is empty, or there is none.")
    if model.config.is_encoder_decoder:
        raise DppaError("A model with an encoder cannot teach yet; allowed are causal ones.")
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = tokenizer.eos_token_id or 0
    sequences: list[torch.Tensor] = []
    begins: list[int] = []
    likely, logarithm = [], []
    for start in range(0, len(prompts), batch_size):
        encoded = [list(each) for each in prompts[start : start + batch_size]]
        longest = max(map(len, encoded))
        # Padded on the left, so that all answers begin at one place.
        tokens = torch.tensor([[pad] * (longest - len(each)) + each for each in encoded])
        mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in encoded])
        answered = model.generate(  # type: ignore[operator]
            input_ids=tokens.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
            pad_token_id=pad,
            return_dict_in_generate=True,
            output_logits=True,
        )
        # (batch, answer, vocabulary)
        logits = torch.stack(answered.logits, 1).float().log_softmax(-1)
        top, places = logits.topk(TOP, -1)
        missing = ANSWER_TOKENS - top.shape[1]
        logarithm.append(torch.nn.functional.pad(top, (0, 0, 0, missing)).cpu())
        likely.append(torch.nn.functional.pad(places, (0, 0, 0, missing)).cpu())
        for each, answer in zip(encoded, answered.sequences[:, longest:].cpu(), strict=True):
            begins.append(len(each))
            sequences.append(torch.cat([torch.tensor(each), _ended(answer, model)]))
    ends = [len(each) for each in sequences]
    return Lessons(
        torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad),
        torch.tensor(begins),
        torch.tensor(ends),
        torch.cat(likely),
        torch.cat(logarithm),
    )


def _ended(answer: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """An answer up to its first token that ends it, included."""
    stops = getattr(model.generation_config, "eos_token_id", None)
    stops = stops if isinstance(stops, list) else [stops]
    for place, token in enumerate(answer.tolist()):
        if token in stops:
            return answer[: place + 1]
    return answer


def divergence(model: PreTrainedModel, lessons: Lessons) -> torch.Tensor:
    """Mean over the lessons of the mean over their answers' tokens of KL(teacher || model)."""
    lessons = lessons.to(model.device)
    places = torch.arange(lessons.tokens.shape[1], device=model.device)
    in_text = places < lessons.end[:, None]
    logits: torch.Tensor = model(
        # The teacher's padding may be a word that the model lacks.
        input_ids=lessons.tokens.masked_fill(~in_text, 0),
        attention_mask=in_text.long(),
        use_cache=False,
    ).logits
    steps = torch.arange(ANSWER_TOKENS, device=model.device)
    # What is said of a token stands at the place before it.
    at = lessons.begin[:, None] - 1 + steps
    counted = at + 1 < lessons.end[:, None]
    at = at.clamp(max=lessons.tokens.shape[1] - 1)
    words = logits.shape[-1]
    chosen = logits.gather(1, at[:, :, None].expand(-1, -1, words))
    said = widened(chosen).log_softmax(-1).gather(2, lessons.likely.clamp(max=words - 1))
    teacher = lessons.logarithm.to(said.dtype)
    known = lessons.likely < words  # a word that only the teacher has is one of all others
    expected = teacher.exp() * known
    rest = (1 - expected.sum(-1)).clamp(min=LEAST)
    of_rest = (1 - (said.exp() * known).sum(-1)).clamp(min=LEAST)
    each = (expected * (teacher - said)).sum(-1) + rest * (rest.log() - of_rest.log())
    of_lesson: torch.Tensor = (each * counted).sum(-1) / counted.sum(-1).clamp(min=1)
    return of_lesson.mean()


def widened(logits: torch.Tensor) -> torch.Tensor:
    """In float32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()


def batches(number: int, size: int, seed: int) -> Iterator[torch.Tensor]:
    """Places of a batch, without end: all lessons in a random order, again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(number, generator=generator)
        yield from (order[start : start + size] for start in range(0, number, size))
