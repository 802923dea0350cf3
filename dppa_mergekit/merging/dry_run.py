"""mergekit's plan of a merge that is not carried out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit.errors import DppaError, RecipeError, first_line

if TYPE_CHECKING:
    from mergekit.graph import Task
    from transformers import PretrainedConfig

    from dppa_mergekit.recipes import Recipe


@contextmanager
def dry_run(
    recipe: Recipe,
    folder: str,
    config: PretrainedConfig | None = None,
    trust_remote_code: bool = False,
) -> Iterator[Sequence[Task[object]]]:
    """The tasks that would write a merge; its inputs can be read while this is open.

    Args:
        recipe: Of any method.
        folder: That it would write; nothing is written.
        config: Of the merged model; the base's where None.
        trust_remote_code: As mergekit has it.

    Raises:
        DppaError: It cannot be planned.
    """
    from mergekit.architecture import get_architecture_info
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import MergeOptions
    from mergekit.plan import MergePlanner

    configuration = recipe.configuration()
    options = MergeOptions(quiet=True, trust_remote_code=trust_remote_code)
    LoaderCache.loaders.clear()
    try:
        LoaderCache().setup(options=options)
        for model in configuration.referenced_models():
            LoaderCache().get(model)
        if config is None:
            base = configuration.base_model or configuration.referenced_models()[0]
            config = base.config(trust_remote_code=trust_remote_code)
        planner = MergePlanner(
            configuration,
            get_architecture_info(configuration, options),
            options=options,
            out_model_config=config,
        )
        tasks: Sequence[Task[object]] = planner.plan_to_disk(folder)
    except DppaError:
        LoaderCache.loaders.clear()
        raise
    # Whatever mergekit raises for inputs that are not there or that it does not know.
    except Exception as problem:
        LoaderCache.loaders.clear()
        reason = " ".join(str(problem).split())[:200].rstrip(".")
        raise RecipeError(f"{recipe.origin} cannot be merged ({reason}).") from problem
    try:
        yield tasks
    finally:
        LoaderCache.loaders.clear()


@contextmanager
def dry_run_again(recipe_file: Path) -> Iterator[Sequence[Task[object]]]:
    """The tasks that would write a merged folder once more, as above.

    Args:
        recipe_file: That mergekit left in the folder; the paths in it count from here.

    Raises:
        DppaError: It cannot be read or planned, or transformers does not know the folder's
            configuration.
    """
    from transformers import AutoConfig

    from dppa_mergekit.recipes import Recipe

    recipe, folder = Recipe.read(recipe_file), recipe_file.parent
    try:
        config = AutoConfig.from_pretrained(folder)
    # Whatever transformers raises for a configuration that it does not know.
    except Exception as problem:
        raise RecipeError(
            f"{folder}: its config.json is none ({first_line(problem)})."
        ) from problem
    with dry_run(recipe, str(folder), config) as tasks:
        yield tasks
