"""A fine-tuned model as a teacher: its answers to prompts, and how likely it found its tokens.

The teacher answers every prompt once, greedily. For every token of an answer the teacher's TOP
most likely tokens are kept with the logarithms of their probabilities. No labels are needed. The
loss of a student is the Kullback-Leibler divergence from teacher to student over these tokens, with
all other tokens counted as one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from safetensors import safe_open

from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.answers import answer, padding_token
from dppa_mergekit.storage.output_files import stage_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ANSWER_TOKENS = 32
"""The largest number of tokens in an answer."""

TOP = 16
"""The number of most likely tokens that are kept for every token of an answer."""

LEAST = 1e-6
"""The smallest probability that all other tokens can have: below it the logarithm is noise."""


@dataclass(frozen=True)
class Lessons:
    """Prompts, the teacher's answers, and the tokens that it found likely.

    Attributes:
        tokens: (lessons, length) int64 prompt and answer, padded on the right.
        begin: (lessons,) int64 the index of the answer's first token.
        end: (lessons,) int64 one more than the index of the answer's last token.
        likely: (lessons, ANSWER_TOKENS, TOP) int64 the most likely tokens, for every token of an
            answer.
        logarithm: (lessons, ANSWER_TOKENS, TOP) float32 the logarithms of their probabilities.
    """

    tokens: torch.Tensor
    begin: torch.Tensor
    end: torch.Tensor
    likely: torch.Tensor
    logarithm: torch.Tensor

    @property
    def number(self) -> int:
        """The number of lessons."""
        return len(self.tokens)

    @property
    def in_text(self) -> torch.Tensor:
        """(lessons, length) bool, False for padding."""
        positions = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return positions < self.end[:, None]

    def some(self, indices: torch.Tensor) -> Lessons:
        """Return the lessons at (batch,) indices, padded only to the longest of them."""
        longest = int(self.end[indices].max())
        return Lessons(
            self.tokens[indices, :longest],
            self.begin[indices],
            self.end[indices],
            self.likely[indices],
            self.logarithm[indices],
        )

    def words(self, rows: int) -> list[int]:
        """Return, sorted, the tokens of all texts, and the likely ones below `rows`.

        A student whose embedding has so many rows lacks the likely tokens from there on: they are
        among all other tokens to it.
        """
        in_answer = torch.arange(ANSWER_TOKENS) < (self.end - self.begin)[:, None]
        likely = self.likely[in_answer]
        return sorted({*self.tokens[self.in_text].tolist(), *likely[likely < rows].tolist()})

    def to(self, device: torch.device) -> Lessons:
        """Return the same lessons on another device."""
        return Lessons(*(tensor.to(device) for tensor in vars(self).values()))

    def save(self, path: Path, key: str) -> None:
        """Write the lessons to a safetensors file, with the key (`lessons_key`) they belong to."""
        with stage_file(path) as staged:
            safetensors.torch.save_file(vars(self), staged, metadata={"key": key})

    @classmethod
    def read(cls, path: Path, key: str) -> Lessons | None:
        """Read the lessons of a file; None if it is missing, damaged, or has another key."""
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") != key:
                    return None
                return cls(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, TypeError, safetensors.SafetensorError):
            return None


def lessons_key(teacher: str, prompts: Sequence[Sequence[int]]) -> str:
    """Return a hash of all that lessons depend on.

    Args:
        teacher: A fingerprint of the teacher.
        prompts: The tokens of the prompts.
    """
    depends = [teacher, ANSWER_TOKENS, TOP, [list(prompt) for prompt in prompts]]
    return hashlib.sha256(json.dumps(depends).encode()).hexdigest()


@torch.no_grad()
def teach(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    batch_size: int,
) -> Lessons:
    """Let a model answer prompts, and keep the tokens that it found likely.

    Args:
        model: The teacher, a causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: The tokens of the prompts; at least one prompt, of at least one token.
        batch_size: The number of prompts that are answered at once.

    Raises:
        DppaError: There are no prompts, or one of them is empty.
    """
    if not prompts or not all(prompts):
        raise DppaError("There are no prompts, or one of them is empty.")
    pad = padding_token(tokenizer)
    sequences: list[torch.Tensor] = []
    likely, logarithm = [], []
    for start in range(0, len(prompts), batch_size):
        batch = [list(prompt) for prompt in prompts[start : start + batch_size]]
        answers = answer(model, batch, pad, ANSWER_TOKENS)
        top, tokens = answers.log_probabilities().topk(TOP, -1)
        missing = ANSWER_TOKENS - top.shape[1]
        logarithm.append(torch.nn.functional.pad(top, (0, 0, 0, missing)).cpu())
        likely.append(torch.nn.functional.pad(tokens, (0, 0, 0, missing)).cpu())
        sequences += [
            torch.cat([torch.tensor(prompt), tokens])
            for prompt, tokens in zip(batch, answers.tokens, strict=True)
        ]
    return Lessons(
        torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad),
        torch.tensor([len(prompt) for prompt in prompts]),
        torch.tensor([len(sequence) for sequence in sequences]),
        torch.cat(likely),
        torch.cat(logarithm),
    )


def divergence(model: PreTrainedModel, lessons: Lessons) -> torch.Tensor:
    """Return the mean over lessons of the mean over their answer's tokens of KL(teacher || model).

    Args:
        model: The student, a live causal language model.
        lessons: At least one lesson.

    Returns:
        A scalar in nats, of at least float32.
    """
    lessons = lessons.to(model.device)
    return divergence_of(read_lessons(model, lessons)[0], lessons)


def read_lessons(
    model: PreTrainedModel, lessons: Lessons, hidden_states: bool = False
) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
    """Let a model read the texts of lessons.

    Args:
        model: A live causal language model.
        lessons: At least one lesson, on the model's device.
        hidden_states: Whether to return the states after every layer.

    Returns:
        (lessons, length, words) logits, and of every layer (lessons, length, size) states.
    """
    in_text = lessons.in_text
    output = model(
        # The teacher's padding may be a token that the student lacks.
        input_ids=lessons.tokens.masked_fill(~in_text, 0),
        attention_mask=in_text.long(),
        use_cache=False,
        output_hidden_states=hidden_states,
    )
    # The first states are the embeddings of the tokens.
    return output.logits, output.hidden_states[1:] if hidden_states else ()


def divergence_of(logits: torch.Tensor, lessons: Lessons) -> torch.Tensor:
    """Return the mean over lessons of the mean over their answer's tokens of KL(teacher || model).

    Args:
        logits: (lessons, length, words) the student's.
        lessons: The lessons, on the same device.

    Returns:
        A scalar in nats, of at least float32.
    """
    steps = torch.arange(ANSWER_TOKENS, device=logits.device)
    # The logits at a position predict the token at the next one.
    positions = lessons.begin[:, None] - 1 + steps
    counted = positions + 1 < lessons.end[:, None]
    positions = positions.clamp(max=lessons.tokens.shape[1] - 1)
    words = logits.shape[-1]
    of_answers = logits.gather(1, positions[:, :, None].expand(-1, -1, words))
    student = widen(of_answers).log_softmax(-1).gather(2, lessons.likely.clamp(max=words - 1))
    teacher = lessons.logarithm.to(student.dtype)
    known = lessons.likely < words  # a token that only the teacher has is one of all others
    expected = teacher.exp() * known
    rest = (1 - expected.sum(-1)).clamp(min=LEAST)
    student_rest = (1 - (student.exp() * known).sum(-1)).clamp(min=LEAST)
    of_tokens = (expected * (teacher - student)).sum(-1) + rest * (rest.log() - student_rest.log())
    of_lessons: torch.Tensor = (of_tokens * counted).sum(-1) / counted.sum(-1).clamp(min=1)
    return of_lessons.mean()


def distance(
    student: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor], lessons: Lessons
) -> torch.Tensor:
    """Return the mean over lessons, tokens and layers of ||student - teacher||^2 / ||teacher||^2.

    Args:
        student: (lessons, length, size) the student's hidden states after each layer.
        teacher: The teacher's.
        lessons: The lessons, on the same device.

    Returns:
        A scalar of at least float32.
    """
    in_text = lessons.in_text
    of_layers = []
    for states, wanted in zip(student, teacher, strict=True):
        aim = widen(wanted)
        errors = (widen(states) - aim).square().sum(-1)
        relative = errors / aim.square().sum(-1).clamp(min=torch.finfo(aim.dtype).tiny)
        of_layers.append(((relative * in_text).sum(-1) / in_text.sum(-1)).mean())
    return torch.stack(of_layers).mean()


def widen(logits: torch.Tensor) -> torch.Tensor:
    """Return logits in float32, or in float64 if they are."""
    return logits if logits.dtype == torch.float64 else logits.float()
