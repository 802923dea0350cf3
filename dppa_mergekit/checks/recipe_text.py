"""A recipe by its text alone: keys and parameters that mergekit would ignore, or not understand."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence

import pydantic
import yaml

from dppa_mergekit.checks import mergekit_schema
from dppa_mergekit.checks.findings import Finding, error, nearest, note, warning
from dppa_mergekit.errors import ParameterError
from dppa_mergekit.merging.input_models import DTYPES
from dppa_mergekit.method_table import METHODS
from dppa_mergekit.parameters import REQUIRED, Parameter
from dppa_mergekit.recipes import holders, identity, inputs_of

Node = Mapping[str, object]


MERGE_KEY = "tag:yaml.org,2002:merge"
"""Of `<<`, whose mapping others may override."""


class _Loader(yaml.SafeLoader):
    """As mergekit reads YAML, but for keys that are there twice: it takes the last."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.found: list[Finding] = []


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    seen: dict[object, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == MERGE_KEY:
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(
                "while constructing a mapping",
                node.start_mark,
                "found unhashable key",
                key_node.start_mark,
            )
        line = key_node.start_mark.line + 1
        if key in seen:
            loader.found.append(
                error(f"line {line}", f"{key} is there already, in line {seen[key]}: leave one.")
            )
        seen.setdefault(key, line)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parsed(text: str) -> tuple[Node, list[Finding]]:
    """What a recipe's text holds, and what is wrong with it as YAML; nothing if it is none."""
    try:
        loader = _Loader(text)
        content = loader.get_single_data()
    # A ValueError is of what looks like a date or a number and is none, as 2024-02-30.
    except (yaml.YAMLError, ValueError) as problem:
        return {}, [error("recipe", f"it is not YAML: {' '.join(str(problem).split())}.")]
    if not isinstance(content, dict) or not content:
        return {}, [error("recipe", "it holds no mapping with merge_method.")]
    return content, loader.found


_RANGE = pydantic.TypeAdapter(tuple[int, int])


def layer_range(value: object) -> tuple[int, int] | None:
    """The first layer of a source and the one after its last; None where mergekit refuses it."""
    try:
        return _RANGE.validate_python(value)
    except pydantic.ValidationError:
        return None


def checked(content: Node) -> Iterator[Finding]:
    """What is wrong with a recipe's keys, its method and its parameters."""
    name = content.get("merge_method")
    if not isinstance(name, str) or name not in mergekit_schema.METHODS:
        said = "there is none" if name is None else f"{name} is not one"
        yield error("merge_method", f"{said}; {nearest(str(name), mergekit_schema.METHODS)}")
    method = mergekit_schema.METHODS.get(str(name), mergekit_schema.Method())
    inputs = [key for key in ("models", "slices", "modules") if content.get(key)]
    if len(inputs) != 1:
        there = " and ".join(inputs) or "none"
        yield error("recipe", f"there must be one of models, slices and modules; there is {there}.")
    for key, kind, said in (
        ("models", list, "list"),
        ("slices", list, "list"),
        ("modules", dict, "mapping"),
    ):
        if content.get(key) and not isinstance(content[key], kind):
            yield error(key, f"it is no {said}.")
    if method.based and not content.get("base_model"):
        yield error("base_model", f"{name} needs one, and there is none.")
    for key in ("dtype", "out_dtype"):
        value = content.get(key)
        if value is not None and str(value).removeprefix("torch.") not in DTYPES:
            yield error(key, f"{value!r} is not one; allowed is {', '.join(DTYPES)}.")
    yield from _Walk(str(name), method).recipe(content)


def lacking(content: Node, weighted: bool) -> Iterator[Finding]:
    """What a method of this package needs beside what is there: fine-tuned models, and weights.

    Args:
        content: Of the recipe.
        weighted: Whether weights must be there; a search or AdaMerging may still find them.
    """
    variants = [variant for variant in METHODS if variant.name == content.get("merge_method")]
    named = [holder.get("base_model") for holder in holders(dict(content))]
    bases = {identity(each) for each in named if isinstance(each, str)}
    inputs = [(each, given) for each, given in inputs_of(content) if isinstance(each["model"], str)]
    fine_tuned = [(each, given) for each, given in inputs if identity(each["model"]) not in bases]
    for variant in variants if bases else ():
        if inputs and not fine_tuned:
            yield error(
                variant.name,
                "it needs at least one fine-tuned model beside the base; there is none.",
            )
        for needed in variant.parameters:
            for each, given in fine_tuned if weighted and needed.default is REQUIRED else ():
                if needed.name not in given:
                    yield error(
                        str(each["model"]),
                        f"there is no {needed.name}; allowed is {needed.allowed}.",
                    )


class _Walk:
    """Through a recipe, with what the method knows."""

    def __init__(self, name: str, method: mergekit_schema.Method) -> None:
        self._name, self._method = name, method
        self._parameters = (*method.shared, *method.per_model)
        own = [variant for variant in METHODS if variant.name == name]
        self._own: dict[str, Parameter] = {
            each.name: each for variant in own for each in variant.parameters
        }

    def recipe(self, content: Node) -> Iterator[Finding]:
        yield from self._keys(content, mergekit_schema.RECIPE, "recipe")
        yield from self._shared(content, "recipe")
        yield from _reference(content, "base_model", "recipe")
        yield from self._holder(content, "")
        modules = content.get("modules")
        for name, module in modules.items() if isinstance(modules, dict) else ():
            if isinstance(module, dict):
                where = f"modules, {name}"
                yield from self._keys(module, mergekit_schema.MODULE, where)
                yield from self._shared(module, where)
                yield from self._holder(module, f"{where}, ")

    def _holder(self, content: Node, where: str) -> Iterator[Finding]:
        """What has models or slices: a recipe, or one of its modules."""
        yield from self._inputs(content.get("models"), mergekit_schema.MODEL, f"{where}models")
        slices = content.get("slices")
        for number, each in enumerate(slices if isinstance(slices, list) else (), start=1):
            if isinstance(each, dict):
                place = f"{where}slice {number}"
                yield from self._keys(each, mergekit_schema.SLICE, place)
                yield from self._shared(each, place)
                yield from _reference(each, "base_model", place)
                yield from self._inputs(each.get("sources"), mergekit_schema.SOURCE, place)

    def _inputs(self, inputs: object, keys: Sequence[str], where: str) -> Iterator[Finding]:
        for number, each in enumerate(inputs if isinstance(inputs, list) else (), start=1):
            place = f"{where}, {each.get('model', number) if isinstance(each, dict) else number}"
            if not isinstance(each, dict):
                yield error(place, "it is no mapping with model and parameters.")
                continue
            if each.get("model") is None:
                yield error(place, "there is no model.")
            yield from _reference(each, "model", place)
            if "layer_range" in keys and layer_range(each.get("layer_range")) is None:
                yield error(
                    place,
                    f"layer_range is {each.get('layer_range')!r}; allowed is two whole numbers, "
                    f"the first layer and the one after the last.",
                )
            yield from self._keys(each, keys, place)
            parameters = each.get("parameters")
            for name, setting in parameters.items() if isinstance(parameters, dict) else ():
                if name in self._method.shared:
                    yield error(
                        place,
                        f"{name} holds for the whole merge, and mergekit ignores it here: put it "
                        f"into the recipe's own parameters.",
                    )
                yield from self._parameter(str(name), setting, place)

    def _shared(self, content: Node, where: str) -> Iterator[Finding]:
        parameters = content.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            yield error(where, "parameters is no mapping.")
            return
        for name, setting in (parameters or {}).items():
            yield from self._parameter(str(name), setting, where)

    def _keys(self, content: Node, keys: Sequence[str], where: str) -> Iterator[Finding]:
        for key in content:
            if key in keys:
                continue
            if key in self._parameters:
                yield error(
                    where, f"{key} stands beside parameters, and mergekit ignores it: put it in."
                )
            else:
                yield error(
                    where,
                    f"mergekit ignores {key!r}: {nearest(str(key), (*keys, *self._parameters))}",
                )

    def _parameter(self, name: str, setting: object, where: str) -> Iterator[Finding]:
        if name not in self._parameters:
            if self._name in mergekit_schema.METHODS:
                yield error(
                    where,
                    f"{self._name} has no parameter {name}, and mergekit ignores it: "
                    f"{nearest(name, self._parameters)}",
                )
            return
        for value in _values(setting):
            if isinstance(value, dict):
                yield error(
                    where,
                    f"{name} has a condition with {', '.join(map(str, value))}; allowed are filter "
                    f"and value.",
                )
            elif name in self._own:
                try:
                    self._own[name].check(value)
                except ParameterError as problem:
                    yield error(where, str(problem))
            elif isinstance(value, float) and not math.isfinite(value):
                yield error(where, f"{name} is {value}, which is no finite number.")
        yield from _conditions(name, setting, where)


def _reference(content: Node, key: str, where: str) -> Iterator[Finding]:
    """A model that is none, or one that is not looked into."""
    value = content.get(key)
    if isinstance(value, dict):
        yield note(where, f"its {key} is written as a mapping, which is not looked into.")
    elif value is not None and not isinstance(value, str):
        yield error(where, f"{key} is {value!r}; allowed is a path or a name on the Hub.")


def _values(setting: object) -> Iterator[object]:
    """The values of a parameter, of gradients and conditions too; a condition that is none."""
    if isinstance(setting, list):
        for each in setting:
            yield from _values(each)
    elif isinstance(setting, dict):
        if set(setting) <= set(mergekit_schema.CONDITION) and "value" in setting:
            yield from _values(setting["value"])
        else:
            yield setting
    else:
        yield setting


def _conditions(name: str, setting: object, where: str) -> Iterator[Finding]:
    """Conditions of which one never counts, or that leave tensors without a value."""
    if not isinstance(setting, list) or not any(isinstance(each, dict) for each in setting):
        return
    open_ones = [
        place
        for place, each in enumerate(setting)
        if isinstance(each, dict) and each.get("filter") in (None, "*")
    ]
    if not open_ones:
        yield warning(
            where,
            f"{name} has filters only: what fits none of them gets the default, or nothing; end "
            f"with a value without filter.",
        )
    elif open_ones[0] < len(setting) - 1:
        yield error(
            where,
            f"{name} has filters after a value without one, which never count: put it last.",
        )
