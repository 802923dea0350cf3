"""The models of a merge: what can be refused by their names alone."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from dppa_mergekit.errors import RecipeError
from dppa_mergekit.recipes.references import identity

if TYPE_CHECKING:
    from mergekit.common import ModelReference

DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
"""Dtypes that a recipe may cast to -> bytes of an element."""


def check_models(
    method: str, models: Sequence[Hashable], base: Hashable | None, where: str | None = None
) -> None:
    """Refuse inputs without a base model, and a model given twice under whatever spelling.

    Args:
        method: The merge method's name.
        models: All inputs, the base among them.
        base: The base model.
        where: The slice or tensor that they are the inputs of.

    Raises:
        RecipeError: See above.
    """
    if base is None:
        raise RecipeError(
            f"{method} merges deltas from a base model, and there is none: name it, as base_model "
            f"in a recipe, as base or base_index in Python."
        )
    if base not in models:
        raise RecipeError(
            f"The base model {base} is not among the inputs of {where or 'the merge'}: list it."
        )
    from mergekit.common import ModelReference

    for model in models:
        if isinstance(model, ModelReference):
            _refuse_revision(model)
    seen: dict[Hashable, Hashable] = {}
    for model in models:
        # A call from Python may name its inputs as it likes, and then means no folder by a name.
        key = identity(model) if isinstance(model, ModelReference) else model
        if key not in seen:
            seen[key] = model
            continue
        same = seen[key]
        if base in (same, model) and str(same) != str(model):
            raise RecipeError(
                f"The model {model} is given twice, also as {same}, the base model: list it as "
                f"base_model spells it, or leave it out."
            )
        also = f", also as {same}" if str(same) != str(model) else ""
        raise RecipeError(
            f"The model {model} is given twice{also}; "
            f"allowed is once, with the sum of both weights."
        )


def _refuse_revision(model: ModelReference) -> None:
    """Refuse a folder with a revision: ./a@1 is ./a for mergekit, whatever ./a@1 is."""
    for place in (model.model, model.lora):
        if place is not None and place.revision and os.path.exists(place.path):
            raise RecipeError(
                f"{place}: mergekit reads {place.path} and ignores the revision, which a folder "
                f"does not have; write a path with an @ as {{model: {{path: {place}}}}}."
            )


def check_fine_tuned(method: str, models: Sequence[Hashable], base: Hashable | None) -> None:
    """Refuse a merge of nothing but the base model. Raises RecipeError."""
    if all(model == base for model in models):
        raise RecipeError(
            f"{method} needs at least one fine-tuned model beside the base model {base}; "
            f"there is none."
        )


def check_dtype(parameter: str, name: object) -> None:
    """Refuse a dtype that a merge cannot be in. Raises RecipeError.

    mergekit reads torch.float32, too, but writes it into a config.json that transformers refuses.
    """
    if name is not None and str(name) not in DTYPES:
        raise RecipeError(f"{parameter} is {name!r}; allowed is {', '.join(DTYPES)}.")


def check_device(device: str) -> None:
    """Refuse a device that this machine lacks. Raises RecipeError."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise RecipeError(
            "The merge is to run on cuda, and PyTorch finds no such device: leave out --cuda."
        )
