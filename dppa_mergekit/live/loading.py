"""Load a checkpoint as a live model: on its device, in evaluation mode, with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dppa_mergekit.errors import DppaError, first_line
from dppa_mergekit.live.placement import AS_STORED, Placement

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    folder: Path, placement: Placement = AS_STORED, tokenizer_folder: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, in evaluation mode, and its tokenizer.

    Args:
        folder: A folder that holds weights and configuration.
        placement: Where and how the model is held.
        tokenizer_folder: A folder that holds the tokenizer; the same where None.

    Raises:
        DppaError: transformers cannot load the model, or the model does not fit the device.
    """
    device = placement.device
    model = _read(folder, placement.dtype, placement.loading.trust_remote_code)
    torch.nn.Module.eval(model)
    tokenizer = load_tokenizer(tokenizer_folder or folder, placement)
    needed = sum(tensor.nbytes for tensor in model.state_dict().values())
    try:
        torch.nn.Module.to(model, torch.device(device))
        _hand_whole_states_to_head(model)
        return model, tokenizer
    # torch raises these for a device that is full, is missing, or is not supported by its build.
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).splitlines()[:1]).rstrip(".")
        raise DppaError(
            f"The model needs {needed / 1e9:.1f} GB and cannot be moved to device {device} "
            f"({reason})."
        ) from error


def load_tokenizer(folder: Path, placement: Placement = AS_STORED) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        folder: A folder that holds it.
        placement: Where and how its model is held.

    Raises:
        DppaError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    trusting = placement.loading.trust_remote_code
    try:
        tokenizer: PreTrainedTokenizerBase
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusting)
    # transformers raises many kinds of errors for what it does not know or cannot read.
    except Exception as error:
        raise DppaError(
            f"{folder}: transformers cannot load the tokenizer ({first_line(error)})."
        ) from error
    return tokenizer


def _read(folder: Path, dtype: torch.dtype | None, trust_remote_code: bool) -> PreTrainedModel:
    """Let transformers read a model, on the CPU."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model: PreTrainedModel = kind.from_pretrained(
            folder, dtype="auto" if dtype is None else dtype, trust_remote_code=trust_remote_code
        )
    # transformers raises many kinds of errors for models that it does not know or cannot read.
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DppaError(f"{folder}: transformers cannot load the model ({reason}).") from error
    return model


def _hand_whole_states_to_head(model: PreTrainedModel) -> None:
    """Copy the states of a prompt's last token before they are multiplied by the vocabulary.

    transformers passes them to the head as a slice of all states. In half precision on a CPU torch
    has no fast kernel for a slice and weights that need no gradient: with 13 prompts of 100 tokens,
    SmolLM2-135M takes 3.3 times as long to its first token, for the same bits
    (`tests/benchmarks/head.py`).
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # transformers' own
    if head is not None:
        head.register_forward_pre_hook(lambda _, given: tuple(map(torch.Tensor.contiguous, given)))
