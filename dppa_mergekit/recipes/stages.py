"""Files of several recipes: the stages of `mergekit-multi`, which may merge each other's outputs.

Every document is a recipe with a name, under which others may use its output as a model; one may be
without, the final merge. See mergekit/scripts/multimerge.py, release 0.1.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dppa_mergekit.errors import RecipeError
from dppa_mergekit.recipes.inputs import Node, models_of
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.recipes.references import Reference, is_reference
from dppa_mergekit.recipes.yaml_text import read_documents


@dataclass(frozen=True)
class Stage:
    """One recipe of several.

    Attributes:
        name: Its name; None for the final merge.
        content: The content of the recipe, without the name.
        uses: The names of the stages whose outputs it merges.
    """

    name: str | None
    content: Node
    uses: Sequence[str] = field(default=())

    @property
    def title(self) -> str:
        """The stage in messages."""
        return "the final merge" if self.name is None else f"stage {self.name}"


def stages_of(documents: Sequence[Mapping[str, object]]) -> list[Stage]:
    """Return the stages of a file, in its order.

    Args:
        documents: The documents of the file.

    Raises:
        RecipeError: Two stages have one name, or none; or stages use each other in a circle.
    """
    names = [
        None if document.get("name") is None else str(document["name"]) for document in documents
    ]
    for name in names:
        if names.count(name) > 1:
            found = "without a name" if name is None else f"of the name {name}"
            raise RecipeError(f"There are {names.count(name)} stages {found}; allowed is one.")
    stages = []
    for name, document in zip(names, documents, strict=True):
        content = {key: value for key, value in document.items() if key != "name"}
        uses = [model for model in dict.fromkeys(_models_of(content)) if model in names]
        stages.append(Stage(name, content, uses))
    _refuse_circles(stages)
    return stages


def read_stages(path: Path) -> list[Stage]:
    """Read a file of one recipe or of several.

    Raises:
        RecipeError: The file cannot be read or is not YAML; or as for `stages_of`.
    """
    documents = read_documents(path)
    if len(documents) == 1:
        return [Stage(None, documents[0])]
    return stages_of(documents)


def recipe_of(stage: Stage, path: Path) -> Recipe:
    """Return the recipe of a stage.

    Args:
        stage: The stage.
        path: Its file.

    Raises:
        RecipeError: mergekit refuses the recipe.
    """
    recipe = Recipe(stage.content, f"{path}, {stage.title}")
    recipe.configuration()
    return recipe


def _models_of(content: Node) -> Iterator[str]:
    """Yield the paths of all models of a recipe."""
    for value in models_of(content):
        if is_reference(value):
            yield Reference.parse(value).model.path


def _refuse_circles(stages: Sequence[Stage]) -> None:
    done: set[str | None] = set()
    waiting = list(stages)
    while waiting:
        ready = [stage for stage in waiting if done.issuperset(stage.uses)]
        if not ready:
            names = ", ".join(stage.title for stage in waiting)
            raise RecipeError(f"Stages use each other's outputs in a circle: {names}.")
        done.update(stage.name for stage in ready)
        waiting = [stage for stage in waiting if stage not in ready]
