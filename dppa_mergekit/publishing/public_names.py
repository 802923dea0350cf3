"""Public names for the models and activations of a recipe, in place of local paths."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import count
from pathlib import Path

from dppa_mergekit.errors import DppaError
from dppa_mergekit.parameters import ACTIVATIONS
from dppa_mergekit.recipes.inputs import OF_ALL, activations_in
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.recipes.references import identity

MODEL_KEYS = ("model", "base_model", "lora", "path", "source", "tokenizer_source")
"""Keys of a recipe that may name a model (mergekit/config.py and tokenizer/config.py, 0.1.5)."""


def public_names(content: object, given: Mapping[str, str]) -> dict[str, str]:
    """Return each spelling of a model in a recipe -> its public name.

    Args:
        content: The content of the recipe.
        given: Model, in any spelling -> its name on the Hub. A local folder that is not given is
            called by the last part of its path.
    """
    public = {identity(model): name for model, name in given.items()}
    for model in _spellings(content):
        otherwise = os.path.basename(os.path.abspath(model)) if is_local(model) else model
        public.setdefault(identity(model), otherwise)
    return {model: public[identity(model)] for model in _spellings(content)}


def public_files(content: Mapping[str, object], shown_in: str) -> dict[str, str]:
    """Return each activations file in a recipe -> its public name.

    Args:
        content: The content of the recipe.
        shown_in: The folder of the public names; empty for none. Files of one name get numbers.
    """
    names: dict[str, str] = {}
    for path in activations_in(content):
        stem, ending = os.path.splitext(os.path.basename(path))
        numbered = (f"{stem}-{number}" if number > 1 else stem for number in count(1))
        found = (os.path.join(shown_in, f"{name}{ending}") for name in numbered)
        if path not in names:
            names[path] = next(name for name in found if name not in names.values())
    return names


def merged_models(recipe: Recipe, names: Mapping[str, str]) -> dict[str, str]:
    """Return each model that a recipe merges -> its public name; the base model comes first."""
    return {model: names.get(model, model) for model in recipe.models()}


def is_local(model: str) -> bool:
    """Return whether a model is a local folder, or is spelled like a path."""
    return Path(model).exists() or model.startswith((".", "/", "~"))


def rename_models(content: object, names: Mapping[str, str]) -> object:
    """Return a copy of a recipe's content with other names for its models and activations."""
    if isinstance(content, list):
        return [rename_models(item, names) for item in content]
    if not isinstance(content, dict):
        return content
    return {
        key: names[value]
        if _is_model(key, value)
        else _rename_files(value, names)
        if key == ACTIVATIONS.name
        else rename_models(value, names)
        for key, value in content.items()
    }


def _rename_files(setting: object, names: Mapping[str, str]) -> object:
    """Return a setting of activations, which may have filters, with other names for its files."""
    if isinstance(setting, list):
        return [_rename_files(part, names) for part in setting]
    if isinstance(setting, dict):
        return {
            key: _rename_files(value, names) if key == "value" else value
            for key, value in setting.items()
        }
    return names.get(setting, setting) if isinstance(setting, str) else setting


def public_yaml(recipe: Recipe, names: Mapping[str, str]) -> str:
    """Return the text of a recipe with public names for its models."""
    content = rename_models(recipe.content, names)
    assert isinstance(content, dict)
    return Recipe(content, recipe.origin).to_yaml()


def refuse_paths(content: object, given: Collection[str]) -> None:
    """Raise DppaError if a recipe to be uploaded contains a local path.

    Args:
        content: The content of the recipe, with public names.
        given: Names that the user gave, allowed even if there is a folder of that name.
    """
    if isinstance(content, (list, dict)):
        for item in content.values() if isinstance(content, dict) else content:
            refuse_paths(item, given)
    elif isinstance(content, str) and content not in given:
        # A LoRA follows +, a revision follows @.
        for part in re.split("[+@]", content):
            if "/" in part and os.path.exists(os.path.expanduser(part)):
                raise DppaError(
                    f"The uploaded recipe would contain {content}, a local path: if it is a "
                    f"model, give its name on the Hub with --name {content}=owner/name; else "
                    f"remove it from the recipe."
                )


def anonymize(text: str, names: Mapping[str, str]) -> str:
    """Return a text in which public names replace the spellings of local models."""
    for model, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
        if model == name:
            continue
        if "/" in model:
            whole = re.compile(rf"(?<![\w./~-]){re.escape(model)}(?![\w/-])")
            text = name.join(whole.split(text))
            continue
        # A name without a slash may also be an ordinary word, so it is replaced only where
        # mergekit's card and recipes name models.
        for before, after in (
            ("(?<=using )", "(?= as a base)"),
            (r"(?m)(?<=^\* )", "$"),
            ("(?<=model: )", r"(?=\s)"),
        ):
            named = re.compile(before + re.escape(model) + after)
            text = name.join(named.split(text))
    return text


def _is_model(key: object, value: object) -> bool:
    """Return whether a key of a recipe and its value name a model."""
    is_keyword = str(key).endswith("source") and value in OF_ALL
    return key in MODEL_KEYS and isinstance(value, str) and not is_keyword


def _spellings(content: object) -> Iterator[str]:
    """Yield every model in a recipe, as it is spelled there."""
    if isinstance(content, list):
        for item in content:
            yield from _spellings(item)
    elif isinstance(content, dict):
        for key, value in content.items():
            if _is_model(key, value):
                yield value
            else:
                yield from _spellings(value)
