"""One tensor of one model, as mergekit reads it: with aliases, ties, conversions and casts.

mergekit plans a task for every tensor that it reads: LoadTensor (mergekit/io/tasks.py, release
0.1.5), or SimpleLoadTensor under mergekit-pytorch (mergekit/scripts/merge_raw_pytorch.py). Only
this module tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch

from dppa_mergekit.checkpoints.headers import Checkpoint
from dppa_mergekit.errors import CheckpointError, DppaError
from dppa_mergekit.tensor_names import is_output_head

if TYPE_CHECKING:
    from mergekit.io.tasks import LoadTensor
    from mergekit.scripts.merge_raw_pytorch import SimpleLoadTensor
    from transformers import PretrainedConfig

    Load: TypeAlias = LoadTensor | SimpleLoadTensor


class Conversion(Protocol):
    """The used part of transformers' WeightTransform (core_model_loading.py, release 5).

    One that has `operations` makes its targets of all its sources; another only renames them.
    """

    source_patterns: list[str]
    target_patterns: list[str]

    def rename_source_key(self, source_key: str, /) -> tuple[str, str | None]:
        """Return the new name of a stored tensor, and the pattern that matched it."""


def _is_raw(load: Load) -> bool:
    return hasattr(load, "tensor_name")


def own_name(load: Load) -> str:
    """Return the tensor's name in the model that it is read from."""
    return str(load.tensor_name if _is_raw(load) else load.tensor)


def possible_names(load: Load) -> list[str]:
    """Return the names under which the model may store the tensor, its own name first."""
    if _is_raw(load):
        return [own_name(load)]
    return [own_name(load), *(load.aliases or ()), *(load.tied_names or ())]


def reading(load: Load) -> list[object]:
    """Return plain data that says which tensor is read and to which dtype it is cast."""
    return [possible_names(load), load.dtype]


def checkpoint_of(load: Load, model: object) -> Checkpoint:
    """Return the files that a tensor is read from; mergekit holds their index already."""
    if _is_raw(load):
        from mergekit.scripts.merge_raw_pytorch import SimpleLoaderCache

        return Checkpoint(str(model), SimpleLoaderCache().get(load.model).index)
    from mergekit.io.tasks import LoaderCache

    return Checkpoint(str(model), LoaderCache().get(load.model).index)


def is_convertible(load: Load) -> bool:
    """Return whether transformers converts checkpoints of this type, as for unstacked experts.

    The conversion itself is tried when the tensor is read, which is before anything is written.
    """
    if _is_raw(load):
        return False
    from mergekit.io.tasks import LoaderCache

    config = load.model.config(trust_remote_code=LoaderCache().trust_remote_code)
    return bool(conversions_of(config))


def conversions_of(config: PretrainedConfig) -> Sequence[Conversion]:
    """Return how transformers converts stored tensors to those of its models, step by step."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    found: Sequence[Conversion] | None
    found = get_checkpoint_conversion_mapping(config.model_type)  # type: ignore[no-untyped-call]
    return found or ()


def tied_names_of(config: PretrainedConfig) -> Mapping[str, str]:
    """Return name of a tensor -> name of the one that takes its place when a model is loaded."""
    import transformers

    if not ties_head(config):
        return {}
    architecture = next(iter(config.architectures or ()), "")
    model = getattr(transformers, architecture, None)
    tied: object = getattr(model, "_tied_weights_keys", None)
    return tied if isinstance(tied, dict) else {}


def is_tied(load: Load) -> bool:
    """Return whether the model of an output head ties it to the embeddings."""
    if _is_raw(load):
        return False
    from mergekit.io.tasks import LoaderCache

    config = load.model.config(trust_remote_code=LoaderCache().trust_remote_code)
    return ties_head(config)


def ties_head(config: PretrainedConfig) -> bool:
    """Return whether a configuration ties the output head to the embeddings.

    transformers asks the configuration of the whole model, which may leave it to that of the text.
    """
    of_text = getattr(config.get_text_config(), "tie_word_embeddings", False)
    return bool(getattr(config, "tie_word_embeddings", of_text))


def is_embeddings_for_head(load: Load, stored: str) -> bool:
    """Return whether mergekit would take the embeddings for an output head that is not tied.

    Args:
        load: mergekit's task.
        stored: The name under which it finds its tensor.
    """
    is_tied_name = not _is_raw(load) and stored in (load.tied_names or ())
    return is_tied_name and is_output_head(own_name(load)) and not is_tied(load)


def read(load: Load, model: object) -> torch.Tensor | None:
    """Return the tensor as the merge will see it, on the CPU; None if it is optional and missing.

    Raises:
        CheckpointError: The tensor cannot be read.
    """
    try:
        tensor: torch.Tensor | None = load.model_copy(update={"device": None}).execute()
    except DppaError:
        raise
    # mergekit, safetensors and torch raise many kinds for a damaged file or a failed conversion.
    except Exception as error:
        raise CheckpointError(
            f"{model}: tensor {own_name(load)} cannot be read ({type(error).__name__}: {error})."
        ) from error
    return tensor
