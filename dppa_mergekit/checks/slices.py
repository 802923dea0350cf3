"""Slices of a recipe: layers that would move from their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pydantic

from dppa_mergekit.checks.findings import Finding, error

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
            moved = next((first for first, _ in ranges if first != position), None)
            if moved is not None:
                yield error(
                    f"{where}slice {number}",
                    f"layer {moved} would become layer {position}, and {method} needs every layer "
                    f"in its own place.",
                )
            first, after = ranges[0]
            position += after - first


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
    sources = stretch.get("sources") if isinstance(stretch, dict) else None
    for source in sources if isinstance(sources, list) else ():
        layers = read_layer_range(source.get("layer_range")) if isinstance(source, dict) else None
        if layers is not None:
            yield layers
