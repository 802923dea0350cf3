"""A base or fine-tuned model as it is before any merge: folder, fingerprint, live model."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit.checkpoints.headers import Checkpoint
from dppa_mergekit.checks.checkpoint_facts import TOKENIZERS
from dppa_mergekit.checks.checkpoint_files import ADAPTER
from dppa_mergekit.errors import CheckpointError, DppaError, first_line
from dppa_mergekit.live.loading import load_model, load_tokenizer
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.recipes.inputs import activations_in
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.recipes.references import Place, named
from dppa_mergekit.storage.run_record import digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)

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


@dataclass(frozen=True)
class SourceModel:
    """A base or fine-tuned model.

    Attributes:
        model: A folder or a repository on the Hub, as the recipe spells it.
        placement: The device and the dtype of the live model.
    """

    model: str
    placement: Placement = AS_STORED

    def folder(self) -> Path:
        """Return the model's folder on this machine; download it from the Hub if necessary.

        A LoRA is merged into its model by mergekit, once, in the cache.

        Raises:
            DppaError: The model has a LoRA and there is no cache, or its LoRA cannot be merged; or
                it is neither a local folder nor a repository on the Hub.
        """
        reference = named(self.model)
        if reference.lora is not None:
            return self._folder_with_lora()
        path = reference.model.path
        if reference.model.is_local:
            return Path(path)
        if path.startswith((".", "/", "~")):
            raise DppaError(f"{self.model}: there is no such folder.")
        from mergekit.common import ModelReference

        try:
            # mergekit's own download, which follows, leaves out templates and lists of merges.
            self._download(reference.model, (*TOKENIZERS, *BESIDE_WEIGHTS, "*.py"))
            cache = self.placement.loading.transformers_cache
            return Path(ModelReference.parse(self.model).local_path(cache))
        # The Hub's client raises many kinds of errors for a name that it cannot fetch.
        except Exception as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise DppaError(
                f"{self.model}: there is no such folder, and it cannot be found on the Hub "
                f"({reason})."
            ) from error

    def _folder_with_lora(self) -> Path:
        """Return the folder of the model with its LoRA merged. Raises DppaError as `folder`."""
        from mergekit.common import ModelReference

        loading = self.placement.loading
        if loading.lora_merge_cache is None:
            raise DppaError(f"{self.model} has a LoRA, and needs a lora_merge_cache.")
        try:
            merged = ModelReference.parse(self.model).merged(
                cache_dir=loading.lora_merge_cache,
                trust_remote_code=loading.trust_remote_code,
                lora_merge_dtype=loading.lora_merge_dtype,
            )
        # PEFT and transformers raise many kinds of errors for an adapter that does not fit.
        except Exception as error:
            raise DppaError(
                f"{self.model}: its LoRA cannot be merged ({first_line(error)})."
            ) from error
        return Path(merged.model.path)

    def fingerprint(self) -> str:
        """Return a hash that changes with the checkpoint, and with how it reads and answers."""
        # The merge of a LoRA may be new in every run.
        dated = named(self.model).lora is None
        return fingerprint(self.folder(), dated, self.tokenizer_folder())

    def content(self) -> str:
        """Return a hash that a copy of the checkpoint shares."""
        return fingerprint(self.folder(), dated=False, beside=self.tokenizer_folder())

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model, in evaluation mode, and its tokenizer.

        Raises:
            DppaError: The model cannot be found or loaded, or does not fit the device.
        """
        return load_model(self.folder(), self.placement, self.tokenizer_folder())

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer of the model. Raises DppaError as `load`."""
        return load_tokenizer(self.tokenizer_folder(), self.placement)

    def tokenizer_folder(self) -> Path:
        """Return the folder of the tokenizer: of a LoRA's own where it has one, or its model's.

        Raises:
            DppaError: As `folder`.
        """
        reference = named(self.model)
        if reference.lora is None:
            return self.folder()
        own = self._adapter_folder(reference.lora)
        if own is not None and any((own / name).exists() for name in TOKENIZERS):
            return own
        return SourceModel(str(reference.model), self.placement).folder()

    def _adapter_folder(self, adapter: Place) -> Path | None:
        """Return the folder of a LoRA; on the Hub, one with its tokenizer's files alone.

        Returns:
            The folder; None, with a warning, if the Hub cannot be reached and the files are not
            here.

        Raises:
            DppaError: It is neither a local folder nor a repository on the Hub.
        """
        if adapter.is_local:
            return Path(adapter.path)
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            # The client warns where nothing matches, and every LoRA has the first file.
            return self._download(adapter, (ADAPTER, *TOKENIZERS, *BESIDE_WEIGHTS))
        except LocalEntryNotFoundError:
            LOG.warning(
                "%s: the Hub cannot be asked whether its LoRA has a tokenizer; that of the model "
                "below is used.",
                self.model,
            )
            return None
        # The Hub's client raises many kinds of errors for a name that it cannot fetch.
        except Exception as error:
            raise DppaError(
                f"{self.model}: its LoRA is neither a local folder nor a repository on the Hub "
                f"({first_line(error)})."
            ) from error

    def _download(self, place: Place, patterns: Sequence[str]) -> Path:
        """Return the folder of a repository on the Hub, with the files that match patterns."""
        from huggingface_hub import snapshot_download

        folder = snapshot_download(
            place.path,
            revision=place.revision,
            cache_dir=self.placement.loading.transformers_cache,
            allow_patterns=list(patterns),
        )
        return Path(folder)


def fingerprint(folder: Path, dated: bool, beside: Path | None = None) -> str:
    """Return a hash of a model's weights and of how it reads prompts and answers.

    Not every byte of the weights is read: names, sizes, headers and a page of every tensor are.

    Args:
        folder: The model's folder.
        dated: Whether the modification times of its files count, too. They show a change that the
            pages miss, but a copy of the model then has another fingerprint.
        beside: The folder of its tokenizer; the same where None.

    Raises:
        CheckpointError: mergekit finds no weights in the folder, or they are damaged.
    """
    from mergekit.io.lazy_tensor_loader import ShardedTensorIndex

    try:
        checkpoint = Checkpoint(str(folder), ShardedTensorIndex.from_disk(str(folder)))
        state = checkpoint.fingerprint() if dated else checkpoint.content()
    except CheckpointError:
        raise
    # mergekit and torch raise many kinds of errors for files that are damaged or not a model's.
    except Exception as error:
        raise CheckpointError(f"{folder}: {first_line(error)}.") from error
    digest = hashlib.sha256(repr(state).encode())
    folders = {folder, beside or folder}
    files = {path for pattern in BESIDE_WEIGHTS for one in folders for path in one.glob(pattern)}
    for path in sorted(path for path in files if path.is_file()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def fingerprints(recipe: Recipe, placement: Placement = AS_STORED) -> dict[str, str]:
    """Model -> its fingerprint, for the base and the fine-tuned models of a recipe."""
    models = [recipe.base, *recipe.fine_tuned()]
    return {model: SourceModel(model, placement).fingerprint() for model in models}


def activation_digests(recipe: Recipe) -> dict[str, str | None]:
    """Activations file -> the SHA-256 of its content; None where there is no such file."""
    return {path: digest(Path(path)) for path in activations_in(recipe.content)}
