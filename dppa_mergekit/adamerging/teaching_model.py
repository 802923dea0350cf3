"""A fine-tuned model as a teacher: its lessons, and whether another model knows their words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dppa_mergekit.adamerging.teacher import Lessons, key_of, teach
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.source_model import SourceModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_words(
    teacher: SourceModel,
    lessons: Lessons,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Refuse to teach a model to which the tokens of the lessons are other words.

    Args:
        teacher: Whose lessons they are.
        lessons: Of this model.
        model: Who learns.
        tokenizer: Of who learns.

    Raises:
        DppaError: A token is another word there, or none.
    """
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(
        teacher.folder(), trust_remote_code=teacher.placement.trust_remote_code
    )
    numbers = own.get_vocab(), tokenizer.get_vocab()
    mine, theirs = ({number: word for word, number in each.items()} for each in numbers)
    (rows, _) = torch.nn.Module.state_dict(model.get_input_embeddings())["weight"].shape
    for number in lessons.words(rows):
        if number >= rows:
            raise DppaError(
                f"{teacher.model} cannot teach the merge: its prompts or answers hold token "
                f"{number}, {mine.get(number)!r}, and the merge has only {rows} tokens."
            )
        # A word under one number that only got another name is the same row of the embedding.
        moved = any(
            numbers[other].get(word, number) != number
            for other, word in enumerate((theirs.get(number), mine.get(number)))
            if word is not None
        )
        if moved:
            raise DppaError(
                f"{teacher.model} cannot teach the merge: token {number} is "
                f"{mine.get(number)!r} to it and {theirs.get(number)!r} to the merge. Where a "
                f"recipe's tokenizer numbers words anew, no fine-tuned model can teach."
            )


def lessons_of(
    teacher: SourceModel,
    prompts_of: Callable[[PreTrainedModel, PreTrainedTokenizerBase], list[list[int]]],
    batch_size: int,
    kept: Path | None,
) -> Lessons:
    """What a model answers prompts: from where it was kept, or anew, and then kept there.

    Args:
        teacher: The model.
        prompts_of: The tokens of the prompts, given the live model and its tokenizer.
        batch_size: Of the answering.
        kept: A file; None to keep nothing.
    """
    model, tokenizer = teacher.load()
    prompts = prompts_of(model, tokenizer)
    key = key_of(f"{teacher.fingerprint()} {teacher.placement.dtype}", prompts)
    known = None if kept is None else Lessons.read(kept, key)
    if known is None:
        known = teach(model, tokenizer, prompts, batch_size)
        if kept is not None:
            known.save(kept, key)
    return known
