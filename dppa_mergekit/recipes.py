"""Recipes as their files have them: what mergekit reads, with numbers filled in.

Everything that is not filled in stays as it was, but for comments and layout.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import yaml

from dppa_mergekit.errors import RecipeError
from dppa_mergekit.tensor_names import Block

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration

Node: TypeAlias = dict[str, object]

Setting: TypeAlias = float | Sequence[float]
"""A number, or mergekit's gradient: knots from the first layer to the last."""

Weight: TypeAlias = float | Mapping[Block | None, float]
"""Of a model: one for all of it, or block by block and, under None, for what is in no block."""


@dataclass(frozen=True)
class Recipe:
    """A merge recipe.

    Attributes:
        content: What its YAML holds.
        origin: What it is called in messages.
    """

    content: Node
    origin: str = "the recipe"

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe's file.

        Raises:
            RecipeError: It cannot be read, is not YAML, or mergekit does not understand it.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} cannot be read: {error}.") from error
        except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date that is none
            raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
        if not isinstance(content, dict):
            raise RecipeError(f"{path} holds no recipe; allowed is a mapping with merge_method.")
        recipe = cls(content, str(path))
        recipe.configuration()
        return recipe

    def configuration(self) -> MergeConfiguration:
        """What mergekit makes of it. Raises RecipeError where mergekit refuses it."""
        import pydantic
        from mergekit.config import MergeConfiguration

        try:
            return MergeConfiguration.model_validate(deepcopy(self.content))
        except (pydantic.ValidationError, RuntimeError, ValueError) as error:
            raise RecipeError(f"{self.origin}: {_first_sentence(error)}.") from error

    @property
    def method(self) -> str:
        """The merge method's name."""
        return str(self.content["merge_method"])

    def fine_tuned(self) -> list[str]:
        """The fine-tuned models, as the recipe spells them, in its order."""
        base = identity(self.content.get("base_model"))
        named = {identity(each["model"]): str(each["model"]) for each in _inputs(self.content)}
        return [name for key, name in named.items() if key != base]

    def weights(self) -> dict[str, float]:
        """The weights of the fine-tuned models, as the recipe spells them.

        Raises:
            RecipeError: One is not a plain number, or not the same in all slices.
        """
        found: dict[str, float] = {}
        for each, given in inputs_of(self.content):
            name = str(each["model"])
            if identity(name) == identity(self.content.get("base_model")):
                continue
            weight = given.get("weight")
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise RecipeError(
                    f"{self.origin}: the weight of {name} is {weight!r}; to be tuned, it must "
                    f"begin as a number."
                )
            if found.setdefault(self.named(name), float(weight)) != weight:
                raise RecipeError(
                    f"{self.origin}: the weight of {name} is {found[self.named(name)]:g} in one "
                    f"place and {weight:g} in another; to be tuned, it must begin as one number."
                )
        return found

    @property
    def is_sliced(self) -> bool:
        """Whether layers come in several slices, within each of which mergekit counts knots."""
        every = [holder.get("slices") for holder in holders(self.content)]
        return any(isinstance(slices, list) and len(slices) > 1 for slices in every)

    def named(self, model: str) -> str:
        """How the recipe spells a fine-tuned model.

        Raises:
            RecipeError: It has no such model.
        """
        for name in self.fine_tuned():
            if identity(name) == identity(model):
                return name
        raise RecipeError(
            f"{self.origin} has no fine-tuned model {model}; it has {', '.join(self.fine_tuned())}."
        )

    def parameters(self, model: str) -> Node:
        """The parameters of one fine-tuned model, where it stands first; the shared ones, too."""
        wanted = identity(model)
        for each, given in inputs_of(self.content):
            if identity(each["model"]) == wanted:
                return given
        return dict(_parameters_of(self.content))

    def with_parameters(self, model: str, values: Mapping[str, object]) -> Recipe:
        """The recipe with parameters of one fine-tuned model set anew, whatever they were.

        Args:
            model: Any spelling of it.
            values: Parameter -> number, or what else mergekit allows.
        """
        content = deepcopy(self.content)
        wanted = identity(self.named(model))
        for each in _inputs(content):
            if identity(each["model"]) == wanted:
                each["parameters"] = {**_parameters_of(each), **values}
        return Recipe(content, self.origin)

    def alone(self, model: str) -> Recipe:
        """The recipe of one fine-tuned model alone on the base, at weight 1 and lambda 1.

        Args:
            model: Any spelling of it.
        """
        recipe = self.with_parameters(model, {"weight": 1.0})
        kept = {identity(self.named(model)), identity(self.content.get("base_model"))}
        for holder in holders(recipe.content):
            for key in ("models", "sources"):
                inputs = holder.get(key)
                if isinstance(inputs, list):
                    holder[key] = [
                        each
                        for each in inputs
                        if isinstance(each, dict) and identity(each.get("model")) in kept
                    ]
            shared = holder.get("parameters")
            if isinstance(shared, dict):
                shared.pop("lambda", None)
        return recipe

    def weighted(self, weights: Mapping[str, Weight]) -> Recipe:
        """The recipe with the weights of fine-tuned models set anew, whatever they were.

        Args:
            weights: Any spelling of a model -> its weight.
        """
        recipe = self
        for model, weight in weights.items():
            value = weight if isinstance(weight, (int, float)) else _filters(weight)
            recipe = recipe.with_parameters(model, {"weight": value})
        return recipe

    def with_start(self, weight: float) -> Recipe:
        """The recipe with a weight for the fine-tuned models that have none."""
        content = deepcopy(self.content)
        base = identity(content.get("base_model"))
        for each, given in inputs_of(content):
            if identity(each["model"]) != base and "weight" not in given:
                each["parameters"] = {"weight": weight, **_parameters_of(each)}
        return Recipe(content, self.origin)

    def to_yaml(self) -> str:
        """The text of its file."""
        return yaml.safe_dump(self.content, sort_keys=False, allow_unicode=True)


def _filters(weights: Mapping[Block | None, float]) -> list[Node]:
    """mergekit's filters for a weight of each block, exact where its gradients would round.

    A filter is a part of a tensor's name, and the first that fits counts: longer stacks come
    first, since one may end as another does.
    """
    blocks = sorted(
        (block for block in weights if block is not None),
        key=lambda block: (-len(block.stack), block),
    )
    found: list[Node] = [
        {"filter": f"{block.stack}.{block.number}.", "value": weights[block]} for block in blocks
    ]
    return [*found, {"value": weights[None]}] if None in weights else found


def at_layer(setting: Setting, layer: int, layers: int) -> float:
    """What a setting is in one of so many layers, by mergekit's own interpolation."""
    if isinstance(setting, (int, float)):
        return float(setting)
    from mergekit.config import evaluate_setting

    place = layer / (layers - 1) if layers > 1 else 1
    return float(evaluate_setting("", list(setting), place, validate=float))


def holders(content: Node) -> Iterator[Node]:
    """Whatever may hold a list of inputs or shared parameters: the recipe, its modules, slices."""
    yield content
    modules = content.get("modules")
    for module in modules.values() if isinstance(modules, dict) else ():
        if isinstance(module, dict):
            yield from holders(module)
    slices = content.get("slices")
    for each in slices if isinstance(slices, list) else ():
        if isinstance(each, dict):
            yield each


def inputs_of(content: Mapping[str, object]) -> Iterator[tuple[Node, Node]]:
    """The entry of every input model, wherever the recipe has one, and what parameters it gets.

    Its own come first, then those of its slice, of its module, and of the recipe, as in mergekit
    (mergekit/config.py, 0.1.5).
    """
    shared = _parameters_of(content)
    for key in ("models", "sources"):
        inputs = content.get(key)
        for each in inputs if isinstance(inputs, list) else ():
            if isinstance(each, dict) and "model" in each:
                yield each, {**shared, **_parameters_of(each)}
    modules, slices = content.get("modules"), content.get("slices")
    within = [*modules.values()] if isinstance(modules, dict) else []
    within += slices if isinstance(slices, list) else []
    for holder in within:
        if isinstance(holder, dict):
            for each, given in inputs_of(holder):
                yield each, {**shared, **given}


def _inputs(content: Node) -> Iterator[Node]:
    """The entry of every input model, wherever the recipe has one."""
    return (each for each, _ in inputs_of(content))


def _parameters_of(holder: Mapping[str, object]) -> Node:
    """What stands under `parameters`, where that is a mapping."""
    held = holder.get("parameters")
    return held if isinstance(held, dict) else {}


def identity(model: object) -> object:
    """What is the same for two spellings of one model: real paths where they exist."""
    if isinstance(model, str) and os.path.exists(model):
        return os.path.realpath(model)
    return str(model)


def _first_sentence(error: Exception) -> str:
    import pydantic

    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return str(error).strip().rstrip(".")
