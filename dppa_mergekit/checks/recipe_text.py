"""The keys and parameters of a recipe: what mergekit would ignore, refuse, or not understand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from dppa_mergekit.checks import mergekit_schema
from dppa_mergekit.checks.findings import Finding, error, find_nearest, note, suggest, warning
from dppa_mergekit.checks.slices import read_layer_range
from dppa_mergekit.errors import ParameterError, RecipeError
from dppa_mergekit.merging.input_models import DTYPES
from dppa_mergekit.method_table import method_of
from dppa_mergekit.parameters import DENSITY, REQUIRED, Parameter
from dppa_mergekit.recipes.inputs import holders, inputs_of, numbers_in
from dppa_mergekit.recipes.references import Reference, identity, spell
from dppa_mergekit.report.phrases import join_names

Node = Mapping[str, object]

_INPUTS = {"models": list, "slices": list, "modules": dict}
"""The keys that hold the inputs of a merge, of which a recipe has one -> its type."""

IGNORES = "mergekit ignores"
"""Is in every sentence about a key or a parameter that mergekit does not read."""

_TYPE_NAMES = {list: "list", dict: "mapping"}


def check_keys(content: Node) -> Iterator[Finding]:
    """Yield what is wrong with a recipe's keys, its method and its parameters."""
    name = content.get("merge_method")
    if not isinstance(name, str) or name not in mergekit_schema.METHODS:
        found = "there is none" if name is None else f"unknown method {name}"
        yield error("merge_method", f"{found}; {suggest(str(name), mergekit_schema.METHODS)}")
    method = mergekit_schema.METHODS.get(str(name), mergekit_schema.Method())
    inputs = [key for key in _INPUTS if content.get(key)]
    if len(inputs) != 1:
        found = join_names(inputs) if inputs else "none"
        yield error("recipe", f"there must be one of models, slices and modules; there is {found}.")
    for key in inputs:
        if not isinstance(content[key], _INPUTS[key]):
            yield error(key, f"it is not a {_TYPE_NAMES[_INPUTS[key]]}.")
    if method.based and not _is_based(content):
        yield error("base_model", f"{name} needs one, and there is none.")
    for key in ("dtype", "out_dtype"):
        value = content.get(key)
        if value is not None and str(value) not in DTYPES:
            # mergekit reads torch.float32, too, and writes it into a config.json that transformers
            # then refuses.
            yield error(key, f"it is {value!r}; allowed is {', '.join(DTYPES)}.")
    yield from _KeyCheck(str(name), method).check_recipe(content)


def find_ignored(content: Node) -> Iterator[Finding]:
    """Yield the keys and parameters of a recipe that mergekit ignores."""
    for finding in check_keys(content):
        if IGNORES in finding.sentence:
            yield finding


def _is_based(content: Node) -> bool:
    """Return whether there is a base model; for mergekit's own methods, slices may name it."""
    if content.get("base_model") or method_of(str(content.get("merge_method"))) is not None:
        return bool(content.get("base_model"))
    slices = [holder for holder in holders(dict(content)) if "sources" in holder]
    return bool(slices) and all(holder.get("base_model") for holder in slices)


def check_required(content: Node, weighted: bool) -> Iterator[Finding]:
    """Yield what a method of this package needs and the recipe lacks: fine-tuned models, weights.

    Args:
        content: The content of the recipe.
        weighted: Whether a missing weight is an error; a search or AdaMerging may still find it.
    """
    method = str(content.get("merge_method"))
    own, fine_tuned = _find_parameters(method), _find_fine_tuned(content)
    if not own or fine_tuned is None:
        return
    if not fine_tuned and any(inputs_of(content)):
        yield error(
            method, "it needs at least one fine-tuned model beside the base; there is none."
        )
    for parameter in own.values() if weighted else ():
        for model, given in fine_tuned if parameter.default is REQUIRED else ():
            if parameter.name not in given:
                yield error(model, f"there is no {parameter.name}; allowed is {parameter.allowed}.")


def check_epsilon(content: Node) -> Iterator[Finding]:
    """Yield every density of DELLA that none of the model's epsilons fits: a merge ends there."""
    method = mergekit_schema.METHODS.get(str(content.get("merge_method")))
    if method is None or not {DENSITY.name, mergekit_schema.EPSILON} <= set(method.per_model):
        return
    for model, given in _find_fine_tuned(content) or ():
        own = numbers_in(given.get(mergekit_schema.EPSILON))
        epsilons = own or [mergekit_schema.DEFAULT_EPSILON]
        for density in numbers_in(given.get(DENSITY.name)):
            if 0 < density < 1 and not any(
                mergekit_schema.allows_epsilon(density, epsilon) for epsilon in epsilons
            ):
                yield error(
                    model,
                    f"epsilon is {join_names([f'{epsilon:g}' for epsilon in epsilons])}"
                    f"{'' if own else ', by default'}; allowed at density {density:g} is a number "
                    f"from 0 to less than {min(density, 1 - density):g}.",
                )


def check_kept(content: Node) -> Iterator[Finding]:
    """Yield every model of whose linears' deltas nothing is kept, by a method of this package."""
    if DENSITY.name not in _find_parameters(str(content.get("merge_method"))):
        return
    kept: dict[str, bool] = {}
    for model, given in _find_fine_tuned(content) or ():
        # A filter leaves other linears to the default.
        is_nothing = given.get(DENSITY.name) in (0, [0])
        kept[model] = kept.get(model, False) or not is_nothing
    for model, some in kept.items():
        if not some:
            yield note(model, "density is 0, so that nothing is kept of its linears' deltas.")


def _find_fine_tuned(content: Node) -> list[tuple[str, Node]] | None:
    """Return every model of a recipe but bases, with its parameters; None without a base."""
    stated = [holder.get("base_model") for holder in holders(dict(content))]
    bases = {identity(base) for base in stated if base is not None}
    if not bases:
        return None
    inputs = [(spell(entry["model"]), given) for entry, given in inputs_of(content)]
    return [(model, given) for model, given in inputs if identity(model) not in bases]


def _find_parameters(method: str) -> dict[str, Parameter]:
    """Return the parameters of a method of this package, by name; none for another's method."""
    own = method_of(method)
    return {} if own is None else {parameter.name: parameter for parameter in own.parameters}


class _KeyCheck:
    """Checks every key and parameter of a recipe for one method."""

    def __init__(self, name: str, method: mergekit_schema.Method) -> None:
        self._name, self._method = name, method
        self._own = _find_parameters(name)

    def check_recipe(self, content: Node) -> Iterator[Finding]:
        yield from self._check_keys(content, mergekit_schema.RECIPE, "recipe")
        yield from self._check_shared(content, "recipe")
        yield from _check_reference(content, "base_model", "recipe")
        yield from self._check_holder(content, "")
        modules = content.get("modules")
        for name, module in modules.items() if isinstance(modules, dict) else ():
            if isinstance(module, dict):
                where = f"modules, {name}"
                yield from self._check_keys(module, mergekit_schema.MODULE, where)
                yield from self._check_shared(module, where)
                yield from self._check_holder(module, f"{where}, ")

    def _check_holder(self, content: Node, where: str) -> Iterator[Finding]:
        """Check the models or slices of a recipe, or of one of its modules."""
        models = content.get("models")
        yield from self._check_inputs(models, mergekit_schema.MODEL, f"{where}models")
        slices = content.get("slices")
        for number, stretch in enumerate(slices if isinstance(slices, list) else (), start=1):
            if isinstance(stretch, dict):
                place = f"{where}slice {number}"
                yield from self._check_keys(stretch, mergekit_schema.SLICE, place)
                yield from self._check_shared(stretch, place)
                yield from _check_reference(stretch, "base_model", place)
                sources = stretch.get("sources")
                yield from self._check_inputs(sources, mergekit_schema.SOURCE, place)

    def _check_inputs(self, inputs: object, keys: Sequence[str], where: str) -> Iterator[Finding]:
        for number, entry in enumerate(inputs if isinstance(inputs, list) else (), start=1):
            if not isinstance(entry, dict):
                yield error(f"{where}, {number}", "it is not a mapping with model and parameters.")
                continue
            place = f"{where}, {spell(entry.get('model', number))}"
            if entry.get("model") is None:
                yield error(place, "there is no model.")
            yield from _check_reference(entry, "model", place)
            if "layer_range" in keys and read_layer_range(entry.get("layer_range")) is None:
                yield error(
                    place,
                    f"layer_range is {entry.get('layer_range')!r}; allowed are two whole numbers, "
                    f"the first layer and the one after the last.",
                )
            yield from self._check_keys(entry, keys, place)
            parameters = entry.get("parameters")
            for name, setting in parameters.items() if isinstance(parameters, dict) else ():
                if name in self._method.shared:
                    yield error(
                        place,
                        f"{name} holds for the whole merge, and {IGNORES} it here: put it "
                        f"into the recipe's own parameters.",
                    )
                yield from self._check_parameter(str(name), setting, place)

    def _check_shared(self, content: Node, where: str) -> Iterator[Finding]:
        parameters = content.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            yield error(where, "parameters is not a mapping.")
            return
        for name, setting in (parameters or {}).items():
            yield from self._check_parameter(str(name), setting, where)

    def _check_keys(self, content: Node, keys: Sequence[str], where: str) -> Iterator[Finding]:
        known = (*keys, *self._method.parameters)
        for key in content:
            if key in keys:
                continue
            if key in self._method.parameters:
                yield error(
                    where,
                    f"{key} stands beside parameters, and {IGNORES} it: move it into them.",
                )
            else:
                yield error(where, f"{IGNORES} {key!r}: {_explain_unknown(str(key), known)}")

    def _check_parameter(self, name: str, setting: object, where: str) -> Iterator[Finding]:
        if name not in self._method.parameters:
            if self._name in mergekit_schema.METHODS:
                yield error(
                    where,
                    f"{self._name} has no parameter {name}, and {IGNORES} it: "
                    f"{_explain_unknown(name, self._method.parameters)}",
                )
            return
        for value in _iterate_values(setting):
            if value is None:
                yield error(where, f"{name} has no value, and mergekit refuses that: leave it out.")
            elif isinstance(value, dict):
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
                yield error(where, f"{name} is {value}, which is not a finite number.")
        yield from _check_lists(name, setting, where)
        yield from _check_conditions(name, setting, where)


def _check_lists(name: str, setting: object, where: str) -> Iterator[Finding]:
    """Yield lists that mergekit refuses, or takes for no value."""
    if not isinstance(setting, list):
        return
    conditions = [part for part in setting if isinstance(part, dict)]
    if not setting:
        yield error(where, f"{name} is an empty list, and so has no value: leave it out.")
    elif 0 < len(conditions) < len(setting):
        yield error(
            where,
            f"{name} mixes filters and plain values, and mergekit refuses that: write every plain "
            f"one as a value, such as {{value: {_first_plain(setting)}}}.",
        )
    for condition in conditions:
        yield from _check_lists(name, condition.get("value"), where)


def _first_plain(setting: Sequence[object]) -> object:
    return next(part for part in setting if not isinstance(part, dict))


def _explain_unknown(name: str, known: Sequence[str]) -> str:
    """Return the end of a sentence about a key or parameter: who has it, and what may be meant."""
    methods = mergekit_schema.find_methods(name)
    if not methods:
        return suggest(name, known)
    owners = f"{join_names(methods)} {'has' if len(methods) == 1 else 'have'} it"
    near = find_nearest(name, known)
    return f"{owners}; did you mean {near}?" if near else f"{owners}."


def _check_reference(content: Node, key: str, where: str) -> Iterator[Finding]:
    """Yield a model that is not one, or that mergekit reads as another."""
    value = content.get(key)
    if value is None:
        return
    if not isinstance(value, (str, dict)):
        yield error(where, f"{key} is {value!r}; allowed is a path or a name on the Hub.")
        return
    try:
        Reference.parse(value)
    except RecipeError as problem:
        yield error(where, f"{key} is {problem.message}")


def _iterate_values(setting: object) -> Iterator[object]:
    """Yield the values in a setting, its gradients and its conditions, and malformed conditions."""
    if isinstance(setting, list):
        for part in setting:
            yield from _iterate_values(part)
    elif isinstance(setting, dict):
        if set(setting) <= set(mergekit_schema.CONDITION) and "value" in setting:
            yield from _iterate_values(setting["value"])
        else:
            yield setting
    else:
        yield setting


def _check_conditions(name: str, setting: object, where: str) -> Iterator[Finding]:
    """Yield conditions of which one never counts, or that leave tensors without a value."""
    if not isinstance(setting, list) or not any(isinstance(part, dict) for part in setting):
        return
    unfiltered = [
        position
        for position, part in enumerate(setting)
        if isinstance(part, dict) and part.get("filter") in (None, "*")
    ]
    if not unfiltered:
        yield warning(
            where,
            f"{name} has only filters: a tensor that matches none gets the default, or no value; "
            f"end with a value without a filter.",
        )
    elif unfiltered[0] < len(setting) - 1:
        yield error(
            where,
            f"{name} has filters after a value without one, which never count: put it last.",
        )
