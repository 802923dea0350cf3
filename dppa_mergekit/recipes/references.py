"""References to models, as recipes write them and mergekit reads them.

A text is a path or a name on the Hub; what follows an @ is a revision, what follows a + is a LoRA.
So a path that contains either must be written as a mapping: {model: {path: ./a@1}}. See
mergekit/common.py (ModelReference, release 0.1.5).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dppa_mergekit.errors import RecipeError

AS_MAPPING = "{{model: {{path: {}}}}}"


@dataclass(frozen=True)
class Place:
    """Where a model or a LoRA is.

    Attributes:
        path: A folder, or a name on the Hub.
        revision: Of a name on the Hub; None for the latest.
    """

    path: str
    revision: str | None = None

    def __str__(self) -> str:
        """Return it as mergekit writes it."""
        return f"{self.path}@{self.revision}" if self.revision else self.path

    @property
    def is_local(self) -> bool:
        """Whether it is a folder here."""
        return os.path.exists(self.path)

    def resolve(self) -> str:
        """Return it with the real path of a folder."""
        if self.is_local:
            return str(Place(os.path.realpath(self.path), self.revision))
        return str(self)


@dataclass(frozen=True)
class Reference:
    """A model of a recipe.

    Attributes:
        model: The model, or the one below a LoRA.
        lora: The LoRA; None without one.
        architecture: The one that mergekit takes in place of that in config.json, if any.
    """

    model: Place
    lora: Place | None = None
    architecture: str | None = None

    def __str__(self) -> str:
        """Return it as mergekit writes it."""
        return f"{self.model}+{self.lora}" if self.lora else str(self.model)

    @classmethod
    def parse(cls, value: object) -> Reference:
        """Read a reference as mergekit does.

        Args:
            value: The text or the mapping in a recipe.

        Raises:
            RecipeError: mergekit cannot read it, or would read it as another path than the one that
                exists.
        """
        if isinstance(value, Mapping):
            if "model" not in value:
                raise RecipeError(
                    f"{dict(value)}, which is no reference to a model; allowed is a path, a name "
                    f"on the Hub, or {AS_MAPPING.format('...')}."
                )
            lora, architecture = value.get("lora"), value.get("override_architecture")
            return cls(
                _parse_place(value["model"]),
                None if lora is None else _parse_place(lora),
                None if architecture is None else str(architecture),
            )
        text = str(value)
        model, plus, lora = text.partition("+")
        if plus and (os.path.isdir(text) or "+" in lora):
            raise RecipeError(
                f"{text}: mergekit takes what follows a + for a LoRA; a path with a + must be "
                f"written as {AS_MAPPING.format(text)}."
            )
        return cls(_parse_place(model), _parse_place(lora) if plus else None)


def _parse_place(value: object) -> Place:
    """Read the model or the LoRA of a reference. Raises RecipeError as `Reference.parse`."""
    if isinstance(value, Mapping):
        if "path" not in value:
            raise RecipeError(f"{dict(value)}, which has no path; allowed are path and revision.")
        revision = value.get("revision")
        return Place(str(value["path"]), None if revision is None else str(revision))
    text = str(value)
    place = _split(text)
    if place.revision is None:
        return place
    if "@" in place.revision:
        raise RecipeError(
            f"{text}: mergekit takes what follows an @ for a revision, and reads no two; a path "
            f"with an @ must be written as {AS_MAPPING.format(text)}."
        )
    if place.is_local or os.path.isdir(text):
        raise RecipeError(
            f"{text}: mergekit takes what follows an @ for a revision, and so reads {place.path}; "
            f"a folder has none, and a path with an @ must be written as "
            f"{AS_MAPPING.format(text)}."
        )
    return place


def _split(text: str) -> Place:
    path, at, revision = text.partition("@")
    return Place(path, revision if at else None)


def is_reference(value: object) -> bool:
    """Return whether mergekit can read a model of a recipe, and as what it seems to be."""
    try:
        Reference.parse(value)
    except RecipeError:
        return False
    return True


def spell(value: object) -> str:
    """Return a model of a recipe, written as a text or a mapping, as mergekit writes it."""
    if isinstance(value, Mapping) and is_reference(value):
        return str(Reference.parse(value))
    return str(value)


def named(name: str) -> Reference:
    """Return the model of a spelling that `spell` has given; a folder's name may have + and @."""
    if os.path.exists(name) or not is_reference(name):
        return Reference(Place(name))
    return Reference.parse(name)


def short_name(model: str) -> str:
    """Return the last part of the path of a model, or of its LoRA, without a revision.

    >>> short_name("./models/math")
    'math'
    >>> short_name("org/base@main+./adapters/law")
    'law'
    """
    reference = named(model)
    return Path((reference.lora or reference.model).path).name


def identity(model: object) -> object:
    """Return a text that is the same for all spellings of one model.

    Args:
        model: A model as a recipe writes it, or as `spell` does; or mergekit's reference to it.
            Folders are resolved to their real paths.
    """
    spelling = spell(model)
    if os.path.exists(spelling):
        return os.path.realpath(spelling)
    return "+".join(_split(part).resolve() for part in spelling.split("+"))
