"""Lessons of a fine-tuned model, kept in a file; whether a student knows their tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dppa_mergekit.adamerging.teacher import Lessons, lessons_key, teach
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.source_model import SourceModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def collect_lessons(
    teacher: SourceModel,
    prompts_of: Callable[[PreTrainedModel, PreTrainedTokenizerBase], list[list[int]]],
    batch_size: int,
    file: Path | None,
) -> Lessons:
    """Read the lessons of a teacher from a file, or let the teacher answer and write them to it.

    Args:
        teacher: A fine-tuned model.
        prompts_of: Returns the tokens of the prompts, given the live model and its tokenizer.
        batch_size: The number of prompts that are answered at once.
        file: The file of the lessons; None to keep them nowhere.

    Raises:
        DppaError: The teacher cannot be loaded, has an encoder, or there are no prompts.
    """
    model, tokenizer = teacher.load()
    if model.config.is_encoder_decoder:
        raise DppaError(
            f"{teacher.model} has an encoder and cannot teach; allowed are causal models."
        )
    prompts = prompts_of(model, tokenizer)
    key = lessons_key(f"{teacher.fingerprint()} {teacher.placement.dtype}", prompts)
    lessons = None if file is None else Lessons.read(file, key)
    if lessons is None:
        lessons = teach(model, tokenizer, prompts, batch_size)
        if file is not None:
            lessons.save(file, key)
    return lessons


def check_words(
    teacher: SourceModel,
    lessons: Lessons,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Refuse to teach a model to which the tokens of the lessons are other words.

    Args:
        teacher: The model that gave the lessons.
        lessons: Its lessons.
        model: The student, a live model.
        tokenizer: The student's tokenizer.

    Raises:
        DppaError: A token of the lessons is another word to the student, or none.
    """
    numbers = teacher.tokenizer().get_vocab(), tokenizer.get_vocab()
    mine, theirs = ({number: word for word, number in vocabulary.items()} for vocabulary in numbers)
    (rows, _) = torch.nn.Module.state_dict(model.get_input_embeddings())["weight"].shape
    for number in lessons.words(rows):
        if number >= rows:
            raise DppaError(
                f"{teacher.model} cannot teach the merge: its prompts or answers hold token "
                f"{number}, {mine.get(number)!r}, and the merge has only {rows} tokens."
            )
        # A number whose word only got another name is the same row of the embedding. A word that
        # the other vocabulary has under another number is another row.
        moved = any(
            numbers[other].get(word, number) != number
            for other, word in enumerate((theirs.get(number), mine.get(number)))
            if word is not None
        )
        if moved:
            raise DppaError(
                f"{teacher.model} cannot teach the merge: token {number} is "
                f"{mine.get(number)!r} to it and {theirs.get(number)!r} to the merge. Where the "
                f"recipe's tokenizer numbers words anew, no fine-tuned model can teach."
            )
