"""The inputs of a recipe, wherever it has them: models, slices, modules, and their parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from dppa_mergekit.parameters import ACTIVATIONS

Node: TypeAlias = dict[str, object]

OF_ALL = ("union", "base")
"""The sources of a tokenizer that are no model."""


def holders(content: Node) -> Iterator[Node]:
    """Yield all that may hold inputs or shared parameters: the recipe, its modules, its slices."""
    yield content
    modules = content.get("modules")
    for module in modules.values() if isinstance(modules, dict) else ():
        if isinstance(module, dict):
            yield from holders(module)
    slices = content.get("slices")
    for stretch in slices if isinstance(slices, list) else ():
        if isinstance(stretch, dict):
            yield stretch


def inputs_of(content: Mapping[str, object]) -> Iterator[tuple[Node, Node]]:
    """Yield the entry of every input model in a recipe, with the parameters that it gets.

    Its own parameters come before those of its slice, of its module, and of the recipe, as in
    mergekit (mergekit/config.py, 0.1.5).
    """
    shared = parameters_of(content)
    for key in ("models", "sources"):
        inputs = content.get(key)
        for entry in inputs if isinstance(inputs, list) else ():
            if isinstance(entry, dict) and "model" in entry:
                yield entry, {**shared, **parameters_of(entry)}
    modules, slices = content.get("modules"), content.get("slices")
    within = [*modules.values()] if isinstance(modules, dict) else []
    within += slices if isinstance(slices, list) else []
    for holder in within:
        if isinstance(holder, dict):
            for entry, parameters in inputs_of(holder):
                yield entry, {**shared, **parameters}


def models_of(content: Node) -> Iterator[object]:
    """Yield every model in a recipe as it is written: the base models, then all inputs."""
    for holder in holders(content):
        if holder.get("base_model") is not None:
            yield holder["base_model"]
    for entry, _ in inputs_of(content):
        if entry["model"] is not None:
            yield entry["model"]


def tokenizer_sources(content: Mapping[str, object]) -> Iterator[object]:
    """Yield the sources of the tokenizer and of the embeddings of tokens, as they are written."""
    tokenizer = content.get("tokenizer")
    given = [content.get("tokenizer_source")]
    if isinstance(tokenizer, dict):
        given.append(tokenizer.get("source"))
        tokens = tokenizer.get("tokens")
        for row in tokens.values() if isinstance(tokens, dict) else ():
            source = row.get("source") if isinstance(row, dict) else None
            if isinstance(source, dict) and "kind" in source:
                source = source.get("model")
            given.append(source)
    yield from (source for source in given if source is not None)


def entries_of(content: Node) -> Iterator[Node]:
    """Yield the entry of every input model in a recipe."""
    return (entry for entry, _ in inputs_of(content))


def parameters_of(holder: Mapping[str, object]) -> Node:
    """Return the content of `parameters`; empty where that is not a mapping."""
    parameters = holder.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def values_in(setting: object) -> Iterator[object]:
    """Yield the values of a parameter, which may be a gradient or have filters."""
    if isinstance(setting, list):
        for part in setting:
            yield from values_in(part)
    elif isinstance(setting, dict):
        yield from values_in(setting.get("value"))
    elif setting is not None:
        yield setting


def numbers_in(setting: object) -> list[float]:
    """Return the values of a parameter that are numbers."""
    numbers = [read_number(value) for value in values_in(setting)]
    return [number for number in numbers if number is not None]


def read_number(value: object) -> float | None:
    """Return a value as a number, also from its text, as YAML reads 1e-2; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def activations_in(content: Mapping[str, object]) -> Iterator[str]:
    """Yield the activations file of every input model in a recipe."""
    for _, parameters in inputs_of(content):
        for path in values_in(parameters.get(ACTIVATIONS.name)):
            yield str(path)
