"""Files of several recipes: the stages of `mergekit-multi`, which may merge each other's outputs.

Every document is a recipe with a name, under which others may use its output as a model; one may be
without, the final merge. See mergekit/scripts/multimerge.py, release 0.1.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dppa_mergekit.errors import RecipeError
from dppa_mergekit.recipes.inputs import OF_ALL, Node, models_of, tokenizer_sources
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.recipes.references import Reference, is_reference
from dppa_mergekit.recipes.yaml_text import read_documents

_SOURCES = ("source", "tokenizer_source")
"""The keys of the tokenizer's sources, which may be models."""


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
        RecipeError: Two stages have one name, or none; stages use each other in a circle; or
            mergekit-multi would not read its own copy of a recipe as it was written.
    """
    contents = [
        {key: value for key, value in document.items() if key != "name"} for document in documents
    ]
    if len(contents) == 1:
        # A recipe that is alone is one of mergekit-yaml, which ignores its name.
        return [Stage(None, contents[0])]
    names = [_name_of(document) for document in documents]
    for name in names:
        if names.count(name) > 1:
            found = "without a name" if name is None else f"of the name {name}"
            raise RecipeError(f"There are {names.count(name)} stages {found}; allowed is one.")
    stages = []
    for name, content in zip(names, contents, strict=True):
        uses = [model for model in dict.fromkeys(_models_of(content)) if model in names]
        stages.append(Stage(name, content, uses))
    _refuse_circles(stages)
    for stage in stages:
        _refuse_taken_names(stage, names)
        _refuse_spaces(stage)
    return stages


def _name_of(document: Mapping[str, object]) -> str | None:
    name = document.get("name")
    if name is None or isinstance(name, str):
        return name
    raise RecipeError(f"The name of a stage is {name!r}; allowed is a text, so put it in quotes.")


def read_stages(path: Path) -> list[Stage]:
    """Read a file of one recipe or of several.

    Raises:
        RecipeError: The file cannot be read or is not YAML; or as for `stages_of`.
    """
    return stages_of(read_documents(path))


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
    return (reference.model.path for reference in _references_of(content))


def _references_of(content: Node) -> Iterator[Reference]:
    """Yield all models of a recipe, and the sources of its tokenizer and of tokens."""
    sources = (source for source in tokenizer_sources(content) if source not in OF_ALL)
    for value in (*models_of(content), *sources):
        if is_reference(value):
            yield Reference.parse(value)


def _refuse_taken_names(stage: Stage, names: Sequence[str | None]) -> None:
    """Refuse a name of a stage that is also a word in a recipe, such as its method.

    mergekit-multi puts the folder of the output in the place of every such text.
    """
    for key, text in _texts_of(stage.content):
        if text.partition("+")[0].partition("@")[0] in names:
            raise RecipeError(
                f"{stage.title}: its {key} is {text}, which is the name of a stage, and "
                f"mergekit-multi would put that stage's output there: name the stage otherwise."
            )


def _texts_of(node: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts in a recipe that are no models, each after its key."""
    if isinstance(node, list):
        for part in node:
            yield from _texts_of(part, key)
    elif isinstance(node, dict):
        for name, value in node.items():
            if name not in ("model", "base_model"):
                yield from _texts_of(value, str(name))
    elif isinstance(node, str) and (key not in _SOURCES or node in OF_ALL):
        yield key, node


def _refuse_spaces(stage: Stage) -> None:
    """Refuse a path that mergekit-multi cannot write into its copy of a recipe."""
    references = map(str, _references_of(stage.content))
    spaced = next((path for path in references if " " in path or '"' in path), None)
    if spaced is not None:
        raise RecipeError(
            f"{stage.title}: mergekit-multi cannot write {spaced!r} into its copy of the recipe; "
            f"allowed are paths, and names of stages that others use, without spaces and quotation "
            f"marks."
        )


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
