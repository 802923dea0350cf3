"""Merge recipes: reading them, asking for their models and parameters, filling in numbers.

A recipe keeps everything that is not filled in as its file has it, except comments and layout.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from dppa_mergekit.errors import RecipeError
from dppa_mergekit.recipes.by_scope import Weight, filters
from dppa_mergekit.recipes.inputs import (
    Node,
    entries_of,
    holders,
    inputs_of,
    parameters_of,
    read_number,
)
from dppa_mergekit.recipes.references import identity, spell
from dppa_mergekit.recipes.yaml_text import read_documents, write_document

if TYPE_CHECKING:
    from mergekit.config import MergeConfiguration

Setting: TypeAlias = float | Sequence[float]
"""A number, or mergekit's gradient: knots from the first layer to the last."""


@dataclass(frozen=True)
class Recipe:
    """A merge recipe.

    Attributes:
        content: The content of its YAML.
        origin: The name of the recipe in messages.

    Example:
        >>> from dppa_mergekit import Recipe
        >>> recipe = Recipe(
        ...     {
        ...         "merge_method": "dppa",
        ...         "base_model": "./base",
        ...         "models": [{"model": "./math", "parameters": {"weight": 0.4}}],
        ...     }
        ... )
        >>> recipe.fine_tuned()
        ['./math']
        >>> recipe.with_weights({"./math": 0.7}).weights()
        {'./math': 0.7}
    """

    content: Node
    origin: str = "the recipe"

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read a recipe's file.

        Raises:
            RecipeError: The file cannot be read, is not YAML, or mergekit refuses the recipe.
        """
        content, *more = read_documents(path)
        if more:
            raise RecipeError(
                f"{path} holds several recipes, as for mergekit-multi; allowed is one here."
            )
        if "domains" in content and "merge_method" not in content:
            raise RecipeError(f"{path} is a tasks file; allowed is a recipe, with merge_method.")
        recipe = cls(content, str(path))
        recipe.configuration()
        return recipe

    def configuration(self) -> MergeConfiguration:
        """Return the recipe as mergekit parses it.

        Raises:
            RecipeError: mergekit refuses it.
        """
        import pydantic
        from mergekit.config import MergeConfiguration

        try:
            return MergeConfiguration.model_validate(deepcopy(self.content))
        except (pydantic.ValidationError, RuntimeError, ValueError) as error:
            raise RecipeError(f"{self.origin}: {_first_problem(error)}.") from error

    @property
    def method(self) -> str:
        """The merge method's name."""
        return str(self.content["merge_method"])

    @property
    def base(self) -> str:
        """The base model, as mergekit writes it. Raises RecipeError if the recipe names none."""
        base = self.content.get("base_model")
        if base is None:
            raise RecipeError(f"{self.origin} has no base_model; allowed is a recipe with one.")
        return spell(base)

    def fine_tuned(self) -> list[str]:
        """Return the fine-tuned models, as the recipe spells them, in its order."""
        base = identity(self.content.get("base_model"))
        spelled = {
            identity(entry["model"]): spell(entry["model"]) for entry in entries_of(self.content)
        }
        return [name for model, name in spelled.items() if model != base]

    def models(self) -> list[str]:
        """Return all models, as mergekit writes them: the base, if there is one, and the others."""
        base = self.content.get("base_model")
        return [*([] if base is None else [spell(base)]), *self.fine_tuned()]

    def weights(self, default: float | None = None) -> dict[str, float]:
        """Return the weights of the fine-tuned models, under the recipe's spellings.

        Args:
            default: The weight of a model that has none; None if every model must have one.

        Raises:
            RecipeError: A weight is not a plain number, or differs between slices.
        """
        weights: dict[str, float] = {}
        for entry, parameters in inputs_of(self.content):
            name = spell(entry["model"])
            if identity(name) == identity(self.content.get("base_model")):
                continue
            written = parameters.get("weight", default)
            weight = read_number(written)
            if weight is None:
                raise RecipeError(
                    f"{self.origin}: the weight of {name} is {written!r}; a search "
                    f"starts from a number."
                )
            first = weights.setdefault(self.spelling_of(name), weight)
            if first != weight:
                raise RecipeError(
                    f"{self.origin}: the weight of {name} is {first:g} in one place and "
                    f"{weight:g} in another; a search starts from one number."
                )
        return weights

    @property
    def is_sliced(self) -> bool:
        """Whether layers come in several slices; mergekit counts a gradient's knots in each."""
        stacks = [holder.get("slices") for holder in holders(self.content)]
        return any(isinstance(slices, list) and len(slices) > 1 for slices in stacks)

    def spelling_of(self, model: str) -> str:
        """Return the recipe's own spelling of a fine-tuned model.

        Args:
            model: Any spelling of the model.

        Raises:
            RecipeError: The recipe has no such model.
        """
        for name in self.fine_tuned():
            if identity(name) == identity(model):
                return name
        raise RecipeError(
            f"{self.origin} has no fine-tuned model {model}; it has {', '.join(self.fine_tuned())}."
        )

    def parameters(self, model: str) -> Node:
        """Return the parameters of the first entry of a fine-tuned model, and the shared ones."""
        wanted = identity(model)
        for entry, parameters in inputs_of(self.content):
            if identity(entry["model"]) == wanted:
                return parameters
        return dict(parameters_of(self.content))

    def with_parameters(self, model: str, values: Mapping[str, object]) -> Recipe:
        """Return the recipe with new values for parameters of one fine-tuned model.

        Args:
            model: Any spelling of the model.
            values: Parameter -> number, or any other setting that mergekit allows.
        """
        content = deepcopy(self.content)
        wanted = identity(self.spelling_of(model))
        for entry in entries_of(content):
            if identity(entry["model"]) == wanted:
                entry["parameters"] = {**parameters_of(entry), **values}
        return Recipe(content, self.origin)

    def with_shared(self, values: Mapping[str, object]) -> Recipe:
        """Return the recipe with new values for parameters of the whole merge.

        Those of its slices and modules go, since they would come before.
        """
        content = deepcopy(self.content)
        for holder in holders(content):
            for name in values:
                parameters_of(holder).pop(name, None)
        content["parameters"] = {**parameters_of(content), **values}
        return Recipe(content, self.origin)

    def with_only(self, model: str) -> Recipe:
        """Return the recipe that merges one fine-tuned model into the base, at weight and lambda 1.

        Args:
            model: Any spelling of the model.
        """
        recipe = self.with_parameters(model, {"weight": 1.0})
        kept = {identity(self.spelling_of(model)), identity(self.content.get("base_model"))}
        for holder in holders(recipe.content):
            for key in ("models", "sources"):
                inputs = holder.get(key)
                if isinstance(inputs, list):
                    holder[key] = [
                        entry
                        for entry in inputs
                        if isinstance(entry, dict) and identity(entry.get("model")) in kept
                    ]
            shared = holder.get("parameters")
            if isinstance(shared, dict):
                shared.pop("lambda", None)
        return recipe

    def with_weights(self, weights: Mapping[str, Weight]) -> Recipe:
        """Return the recipe with new weights of fine-tuned models.

        Args:
            weights: Model, in any spelling -> its weight.
        """
        recipe = self
        for model, weight in weights.items():
            recipe = recipe.with_by_scope(model, {"weight": weight})
        return recipe

    def with_by_scope(self, model: str, values: Mapping[str, Weight]) -> Recipe:
        """Return the recipe with new values for parameters of one fine-tuned model.

        Args:
            model: Any spelling of the model.
            values: Parameter -> number, or one for each scope.
        """
        settings = {
            name: value if isinstance(value, (int, float)) else filters(value)
            for name, value in values.items()
        }
        return self.with_parameters(model, settings)

    def with_default(self, name: str, value: float) -> Recipe:
        """Return the recipe with a parameter for the fine-tuned models that do not have it."""
        content = deepcopy(self.content)
        base = identity(content.get("base_model"))
        for entry, parameters in inputs_of(content):
            if identity(entry["model"]) != base and name not in parameters:
                entry["parameters"] = {name: value, **parameters_of(entry)}
        return Recipe(content, self.origin)

    def with_method(self, method: str, known: Container[str]) -> Recipe:
        """Return the recipe with another method, and with those parameters that it knows.

        Args:
            method: The name of the method.
            known: The names of its parameters.
        """
        content = deepcopy(self.content)
        content["merge_method"] = method
        for holder in (*holders(content), *entries_of(content)):
            parameters = parameters_of(holder)
            for name in list(parameters):
                if name not in known:
                    del parameters[name]
        return Recipe(content, self.origin)

    def to_yaml(self, comment: str = "") -> str:
        """Return the text of the recipe's file.

        Args:
            comment: Lines to begin with; empty for none.
        """
        return write_document(self.content, comment)


def at_layer(setting: Setting, layer: int, layers: int) -> float:
    """Return the value of a setting in a layer, by mergekit's own interpolation.

    Args:
        setting: A number or a gradient.
        layer: The number of the layer, from 0.
        layers: How many layers there are.
    """
    if isinstance(setting, (int, float)):
        return float(setting)
    from mergekit.config import evaluate_setting

    position = layer / (layers - 1) if layers > 1 else 1
    return float(evaluate_setting("", list(setting), position, validate=float))


def _first_problem(error: Exception) -> str:
    import pydantic

    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        return f"{field}: {first['msg']}" if field else str(first["msg"])
    return str(error).strip().rstrip(".")
