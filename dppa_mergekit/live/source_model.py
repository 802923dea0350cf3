"""A model as it is, before any merge: where it is, in which state, live, and as a teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dppa_mergekit.adamerging.teacher import Lessons, key_of, taught
from dppa_mergekit.checkpoints.headers import Checkpoint
from dppa_mergekit.errors import CheckpointError, DppaError, first_line
from dppa_mergekit.live.amplified_model import load_model
from dppa_mergekit.recipes import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Placement:
    """Where and how models are held.

    Attributes:
        device: As torch names it.
        dtype: Of the live weights; as they are stored where None.
        trust_remote_code: As transformers has it.
    """

    device: str = "cpu"
    dtype: torch.dtype | None = None
    trust_remote_code: bool = False


BESIDE_WEIGHTS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "generation_config.json",
)
"""Files of a model that decide how it reads prompts, and when it stops."""

AS_STORED = Placement()
"""On the CPU, in its own dtype."""


@dataclass(frozen=True)
class Unmerged:
    """A base or fine-tuned model.

    Attributes:
        model: As a recipe spells it.
        placement: Where and how it is held.
    """

    model: str
    placement: Placement = AS_STORED

    def folder(self) -> Path:
        """Where it is on this machine.

        Raises:
            DppaError: It cannot be found, or is a LoRA.
        """
        from mergekit.common import ModelReference

        reference = ModelReference.parse(self.model)
        if reference.lora is not None:
            raise DppaError(
                f"{self.model} has a LoRA, which only a merge takes as it is: merge it into its "
                f"model first, and name the result."
            )
        path = reference.model.path
        if path.startswith((".", "/", "~")) and not Path(path).exists():
            raise DppaError(f"{self.model}: there is no such folder.")
        try:
            return Path(reference.local_path())
        # Whatever the hub's client raises for a name that is no folder and cannot be fetched.
        except Exception as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise DppaError(f"{self.model} cannot be found ({reason}).") from error

    def fingerprint(self) -> str:
        """What differs between two states of its checkpoint, and of how it reads and answers."""
        return fingerprint(self.folder(), dated=True)

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """It, live, and its tokenizer. Raises DppaError where it cannot be loaded or placed."""
        where = self.placement
        return load_model(self.folder(), where.device, where.dtype, where.trust_remote_code)

    def check_words(
        self, lessons: Lessons, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Refuse to teach a model to which the tokens of the lessons are other words.

        Args:
            lessons: Of this model.
            model: Who learns.
            tokenizer: Of who learns.

        Raises:
            DppaError: A token is another word there, or none.
        """
        from transformers import AutoTokenizer

        own = AutoTokenizer.from_pretrained(
            self.folder(), trust_remote_code=self.placement.trust_remote_code
        )
        numbers = own.get_vocab(), tokenizer.get_vocab()
        mine, theirs = ({number: word for word, number in each.items()} for each in numbers)
        (rows, _) = torch.nn.Module.state_dict(model.get_input_embeddings())["weight"].shape
        for number in lessons.words(rows):
            if number >= rows:
                raise DppaError(
                    f"{self.model} cannot teach the merge: its prompts or answers hold token "
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
                    f"{self.model} cannot teach the merge: token {number} is "
                    f"{mine.get(number)!r} to it and {theirs.get(number)!r} to the merge. Where a "
                    f"recipe's tokenizer numbers words anew, no fine-tuned model can teach."
                )

    def lessons(
        self,
        prompts_of: Callable[[PreTrainedModel, PreTrainedTokenizerBase], list[list[int]]],
        batch_size: int,
        kept: Path | None,
    ) -> Lessons:
        """What it answers prompts: from where it was kept, or anew, and then kept there.

        Args:
            prompts_of: The tokens of the prompts, given the live model and its tokenizer.
            batch_size: Of the answering.
            kept: A file; None to keep nothing.
        """
        model, tokenizer = self.load()
        prompts = prompts_of(model, tokenizer)
        key = key_of(f"{self.fingerprint()} {self.placement.dtype}", prompts)
        known = None if kept is None else Lessons.read(kept, key)
        if known is None:
            known = taught(model, tokenizer, prompts, batch_size)
            if kept is not None:
                known.save(kept, key)
        return known


def fingerprint(folder: Path, dated: bool) -> str:
    """What tells a model apart from others: its weights, and how it reads and answers.

    Args:
        folder: Of the model.
        dated: By the times of its files, too, for what a part of every tensor does not show; a copy
            of it is another model then.

    Raises:
        CheckpointError: mergekit finds no weights in the folder, or they are damaged.
    """
    from mergekit.io.lazy_tensor_loader import ShardedTensorIndex

    try:
        checkpoint = Checkpoint(str(folder), ShardedTensorIndex.from_disk(str(folder)))
        state = checkpoint.fingerprint() if dated else checkpoint.content()
    # Whatever mergekit or torch raise for files that are damaged or none of a model's.
    except Exception as error:
        raise CheckpointError(f"{folder}: {first_line(error)}.") from error
    digest = hashlib.sha256(repr(state).encode())
    beside = {path for pattern in BESIDE_WEIGHTS for path in folder.glob(pattern)}
    for path in sorted(path for path in beside if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def fingerprints(recipe: Recipe, placement: Placement) -> dict[str, str]:
    """Of the checkpoints of a recipe's models."""
    models = [str(recipe.content["base_model"]), *recipe.tuned()]
    return {model: Unmerged(model, placement).fingerprint() for model in models}
