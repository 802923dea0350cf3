"""What the models of a recipe are called in public, where a folder of this machine says nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from dppa_mergekit.errors import DppaError
from dppa_mergekit.recipes import identity

MODEL_KEYS = ("model", "base_model", "lora", "path", "source", "tokenizer_source")
"""Under which a recipe may name a model (mergekit/config.py and tokenizer/config.py, 0.1.5)."""

NO_MODELS = ("base", "union")
"""What may stand in place of a model where a recipe says from where the tokenizer comes."""


def public_names(content: object, given: Mapping[str, str]) -> dict[str, str]:
    """Model, in every spelling of a recipe -> what it is called in public.

    Args:
        content: Of the recipe.
        given: Model, in any spelling -> its name on the Hub; a folder without one is called by its
            last part.
    """
    public = {identity(model): name for model, name in given.items()}
    for model in _spellings(content):
        otherwise = os.path.basename(os.path.abspath(model)) if is_local(model) else model
        public.setdefault(identity(model), otherwise)
    return {model: public[identity(model)] for model in _spellings(content)}


def is_local(model: str) -> bool:
    """Whether a model is, or is meant to be, a folder of this machine."""
    return Path(model).exists() or model.startswith((".", "/", "~"))


def _is_model(key: object, value: object) -> bool:
    """Whether what stands under a key of a recipe names a model."""
    from_there = str(key).endswith("source") and value in NO_MODELS
    return key in MODEL_KEYS and isinstance(value, str) and not from_there


def _spellings(content: object) -> Iterator[str]:
    """The models of a recipe as it spells them, wherever it may name one."""
    if isinstance(content, list):
        for each in content:
            yield from _spellings(each)
    elif isinstance(content, dict):
        for key, value in content.items():
            if _is_model(key, value):
                yield value
            else:
                yield from _spellings(value)


def renamed(content: object, names: Mapping[str, str]) -> object:
    """A recipe with other names for its models."""
    if isinstance(content, list):
        return [renamed(each, names) for each in content]
    if not isinstance(content, dict):
        return content
    return {
        key: names[value] if _is_model(key, value) else renamed(value, names)
        for key, value in content.items()
    }


def refuse_paths(content: object, given: Collection[str]) -> None:
    """Refuse a recipe that would be uploaded with a path of this machine in it.

    Args:
        content: Of the recipe, with public names.
        given: Names that are meant, even where there is a folder of that name.
    """
    if isinstance(content, (list, dict)):
        for each in content.values() if isinstance(content, dict) else content:
            refuse_paths(each, given)
    elif isinstance(content, str) and content not in given:
        # A LoRA stands after +, a revision after @.
        for part in re.split("[+@]", content):
            if "/" in part and os.path.exists(os.path.expanduser(part)):
                raise DppaError(
                    f"The recipe would be uploaded with {content}, a path of this machine: name a "
                    f"model by --name {content}=owner/name, and take out what is none."
                )


def anonymous(text: str, names: Mapping[str, str]) -> str:
    """A text with public names in place of the spellings of local models."""
    for model, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
        if model == name:
            continue
        if "/" in model:
            whole = re.compile(rf"(?<![\w./~-]){re.escape(model)}(?![\w/-])")
            text = name.join(whole.split(text))
            continue
        # A bare name may be a word as well: only where mergekit writes models.
        for before, after in (
            ("(?<=using )", "(?= as a base)"),
            (r"(?m)(?<=^\* )", "$"),
            ("(?<=model: )", r"(?=\s)"),
        ):
            here = re.compile(before + re.escape(model) + after)
            text = name.join(here.split(text))
    return text
