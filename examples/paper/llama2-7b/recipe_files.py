"""The recipes and tasks files beside this module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
RECIPES = ("three_80", "three_90", "two_80", "two_90")


def find_recipe(name: str) -> Path:
    """Return the file of a recipe."""
    return HERE / "recipes" / f"{name}.yml"


def find_tasks(name: str) -> Path:
    """Return the tasks file for a recipe."""
    return HERE / f"{name.split('_')[0]}.yml"


def read_recipe(name: str) -> dict[str, Any]:
    """Return the content of a recipe."""
    recipe: dict[str, Any] = yaml.safe_load(find_recipe(name).read_text(encoding="utf-8"))
    return recipe


def list_inputs(name: str) -> list[str]:
    """Return the names of the models that a recipe reads, the base first."""
    recipe = read_recipe(name)
    return [recipe["base_model"], *(model["model"] for model in recipe["models"])]


def list_tasks(name: str) -> dict[str, list[str]]:
    """Return domain -> its tasks, without `_dev` or `_test`, for the domains of a recipe."""
    tasks = yaml.safe_load(find_tasks(name).read_text(encoding="utf-8"))
    return {
        domain: [task.removesuffix("_test") for task in settings["test"]]
        for domain, settings in tasks["domains"].items()
    }
