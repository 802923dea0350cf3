"""Recipes of slices and of modules that keep every layer in its position."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from checkpoints import recipe, save_family, unequal
from commands import Merge
from oracle_merges import MODELS, of_family


def sliced(folder: Path, ranges: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Slices that keep every layer where it is."""
    return [
        {
            "sources": [
                {"model": str(folder / "base"), "layer_range": list(each)},
                *(
                    {"model": str(folder / n), "layer_range": list(each), "parameters": MODELS[n]}
                    for n in MODELS
                ),
            ]
        }
        for each in ranges
    ]


@pytest.mark.parametrize("ranges", [[(0, 2), (2, 3)], [(0, 3)], [(0, 1), (1, 2), (2, 3)]])
def test_slices_in_place(ranges: list[tuple[int, int]], family: Path, merge: Merge) -> None:
    content = recipe(family)
    content.pop("models")
    merged = merge({**content, "slices": sliced(family, ranges)})
    assert not unequal(merged, of_family(family))


@pytest.mark.parametrize("form", ["models", "slices"])
def test_modules(form: str, family: Path, merge: Merge) -> None:
    content = recipe(family, models=MODELS)
    models = content.pop("models")
    module = (
        {"models": models} if form == "models" else {"slices": sliced(family, [(0, 2), (2, 3)])}
    )
    merged = merge({**content, "modules": {"default": module}})
    assert not unequal(merged, of_family(family))


def test_modules_of_two_stacks(tmp_path: Path, merge: Merge) -> None:
    folder = save_family(tmp_path / "t5", "t5")
    content = recipe(folder, models=MODELS)
    models = content.pop("models")
    modules = {
        "encoder": {"models": models},
        "decoder": {"slices": sliced(folder, [(0, 1), (1, 2)])},
        "shared": {"models": models},
    }
    merged = merge({**content, "modules": modules})
    assert not unequal(merged, merge(recipe(folder, models=MODELS), output="plain"))
