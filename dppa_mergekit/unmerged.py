"""A model as it is, before any merge: where it is, in which state, live, and as a teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dppa_mergekit.checkpoints import Checkpoint
from dppa_mergekit.errors import DppaError
from dppa_mergekit.resident import load_model
from dppa_mergekit.teacher import Lessons, key_of, taught

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
        """Where it is on this machine; with its LoRA, merged as mergekit does.

        Raises:
            DppaError: It cannot be found.
        """
        from mergekit.common import ModelReference

        try:
            whole = ModelReference.parse(self.model).merged(
                trust_remote_code=self.placement.trust_remote_code
            )
            return Path(whole.local_path())
        # Whatever the hub's client raises for a name that is no folder and cannot be fetched.
        except Exception as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise DppaError(f"{self.model} cannot be found ({reason}).") from error

    def fingerprint(self) -> str:
        """What differs between two states of its checkpoint."""
        from mergekit.io.lazy_tensor_loader import ShardedTensorIndex

        index = ShardedTensorIndex.from_disk(str(self.folder()))
        files = Checkpoint(self.model, index).fingerprint()
        return hashlib.sha256(repr(files).encode()).hexdigest()

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """It, live, and its tokenizer. Raises DppaError where it cannot be loaded or placed."""
        where = self.placement
        return load_model(self.folder(), where.device, where.dtype, where.trust_remote_code)

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
        key = key_of(self.fingerprint(), prompts)
        known = None if kept is None else Lessons.read(kept, key)
        if known is None:
            known = taught(model, tokenizer, prompts, batch_size)
            if kept is not None:
                known.save(kept, key)
        return known
