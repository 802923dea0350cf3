"""Layers of a recipe: those that slices move or that do not exist, and gradients over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pydantic

from dppa_mergekit.checks.findings import Finding, error, warning
from dppa_mergekit.merging.layer_ranges import find_layers_past_the_end
from dppa_mergekit.recipes.references import spell
from dppa_mergekit.report.phrases import count

_RANGE = pydantic.TypeAdapter(tuple[int, int])


def read_layer_range(value: object) -> tuple[int, int] | None:
    """Return a source's first layer and the one after its last; None where mergekit refuses it."""
    try:
        return _RANGE.validate_python(value)
    except pydantic.ValidationError:
        return None


def check_layer_order(content: Mapping[str, object], method: str) -> Iterator[Finding]:
    """Yield an error for every slice that moves a layer from the place it has in its model.

    Args:
        content: The content of a recipe.
        method: A method that needs every layer in its place.
    """
    for where, slices in _find_stacks(content):
        position = 0
        for number, stretch in enumerate(slices, start=1):
            ranges = list(_read_ranges(stretch))
            if not ranges:
                break
            moved = next(
                (first for first, after in ranges if first < after and first != position), None
            )
            if moved is not None:
                yield error(
                    f"{where}slice {number}",
                    f"layer {moved} would become layer {position}, and {method} needs every layer "
                    f"in its own place.",
                )
            first, after = ranges[0]
            position += after - first


def check_layer_ranges(
    content: Mapping[str, object], layers: Mapping[str, int]
) -> Iterator[Finding]:
    """Yield an error for every slice of layers that its model lacks, a warning for one of none.

    Args:
        content: The content of a recipe.
        layers: Model -> the number of its layers, where it is known.
    """
    for where, slices in _find_stacks(content):
        for number, stretch in enumerate(slices, start=1):
            sources = list(_read_sources(stretch))
            for model, (first, after) in sources:
                if model in layers:
                    sentence = find_layers_past_the_end(first, after, layers[model], model)
                    if sentence is not None:
                        yield error(f"{where}slice {number}", sentence)
            if sources and all(first == after for _, (first, after) in sources):
                first, after = sources[0][1]
                yield warning(
                    f"{where}slice {number}",
                    f"layer_range is [{first}, {after}], which holds no layer: the second number "
                    f"is the layer after the last.",
                )


def check_gradients(content: Mapping[str, object], layers: int) -> Iterator[Finding]:
    """Yield a warning for every gradient with more values than there are layers.

    Args:
        content: The content of a recipe; gradients inside its slices and modules are left out.
        layers: The number of layers of its models, the largest if they differ.
    """
    for subject, parameters in _find_parameters(content):
        for name, setting in parameters.items():
            for gradient in _find_gradients(setting):
                if len(gradient) > layers:
                    yield warning(
                        subject,
                        f"{name} is a gradient of {len(gradient)} values for "
                        f"{count(layers, 'layer')}: a layer gets what lies between its neighbours.",
                    )


def _find_parameters(
    content: Mapping[str, object],
) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield (owner, parameters); the owner is `recipe` or a model."""
    models = content.get("models")
    for holder in (content, *(models if isinstance(models, list) else ())):
        parameters = holder.get("parameters") if isinstance(holder, dict) else None
        if isinstance(parameters, dict):
            yield str(holder.get("model", "recipe")), parameters


def _find_gradients(setting: object) -> Iterator[Sequence[object]]:
    """Yield the gradients in a setting, which may be those of filters."""
    if isinstance(setting, dict):
        yield from _find_gradients(setting.get("value"))
    elif isinstance(setting, list):
        if any(isinstance(part, dict) for part in setting):
            for part in setting:
                yield from _find_gradients(part)
        else:
            yield setting


def _find_stacks(content: Mapping[str, object]) -> Iterator[tuple[str, Sequence[object]]]:
    """Yield every list of slices, of the recipe and of its modules, after its place in words."""
    slices, modules = content.get("slices"), content.get("modules")
    if isinstance(slices, list):
        yield "", slices
    for name, module in modules.items() if isinstance(modules, dict) else ():
        if isinstance(module, dict) and isinstance(module.get("slices"), list):
            yield f"modules, {name}, ", module["slices"]


def _read_ranges(stretch: object) -> Iterator[tuple[int, int]]:
    """Yield the layer ranges of a slice's sources, except those that mergekit refuses."""
    return (layers for _, layers in _read_sources(stretch))


def _read_sources(stretch: object) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the models of a slice with their layer ranges, except those that mergekit refuses."""
    sources = stretch.get("sources") if isinstance(stretch, dict) else None
    for source in sources if isinstance(sources, list) else ():
        layers = read_layer_range(source.get("layer_range")) if isinstance(source, dict) else None
        if layers is not None:
            yield spell(source.get("model")), layers
