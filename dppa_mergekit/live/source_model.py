"""A model as it is, before any merge: where it is, in which state, and live."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

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
class SourceModel:
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
    models = [str(recipe.content["base_model"]), *recipe.fine_tuned()]
    return {model: SourceModel(model, placement).fingerprint() for model in models}
