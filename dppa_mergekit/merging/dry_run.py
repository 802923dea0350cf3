"""mergekit's plan of a merge that is not carried out, and what this package gathered of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit.checkpoints.loading_options import DEFAULT_LOADING, LoadingOptions
from dppa_mergekit.errors import DppaError, RecipeError, first_line
from dppa_mergekit.merging.delta_pruning_merge import DeltaPruningMerge
from dppa_mergekit.merging.merge_plan import Plan
from dppa_mergekit.merging.mergekit_hooks import plan_of_planner
from dppa_mergekit.merging.misfits import Misfit, find_misfits, find_missing_heads, refuse_misfits
from dppa_mergekit.merging.optional_tensors import find_optional_misfits
from dppa_mergekit.recipes.recipe import Recipe

if TYPE_CHECKING:
    from mergekit.graph import Task
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class DryRun:
    """A planned merge.

    Attributes:
        tasks: mergekit's tasks that would write it.
        plan: The tensors of the merge; None for methods that are not of this package.
        losses: The tensors that it would lose, as the environment allows.
    """

    tasks: Sequence[Task[object]]
    plan: Plan | None
    losses: Sequence[Misfit]


@contextmanager
def dry_run(
    recipe: Recipe,
    folder: str,
    config: PretrainedConfig | None = None,
    loading: LoadingOptions = DEFAULT_LOADING,
) -> Iterator[DryRun]:
    """Plan a merge; its inputs can be read while this is open, and nothing is written.

    Args:
        recipe: Recipe of any method.
        folder: The folder that the merge would write.
        config: Configuration of the merged model; the one that mergekit makes where None.
        loading: How models are loaded.

    Raises:
        DppaError: The merge cannot be planned.
    """
    from mergekit import merge_methods
    from mergekit.architecture import get_architecture_info
    from mergekit.io.tasks import LoaderCache, SaveTensor
    from mergekit.merge import _model_out_config
    from mergekit.plan import MergePlanner

    configuration = recipe.configuration()
    options = loading.merge_options()
    LoaderCache.loaders.clear()
    try:
        LoaderCache().setup(options=options)
        for model in configuration.referenced_models():
            LoaderCache().get(model)
        table = get_architecture_info(configuration, options)
        if config is None:
            config = _model_out_config(configuration, table, loading.trust_remote_code)
        planner = MergePlanner(configuration, table, options=options, out_model_config=config)
        # The methods of this package look for misfits themselves.
        is_own = isinstance(merge_methods.get(recipe.method), DeltaPruningMerge)
        losses = [] if is_own else list(refuse_misfits(find_misfits(planner)))
        tasks = planner.plan_to_disk(folder)
        plan = plan_of_planner(planner)
        if plan is not None:
            plan.inputs()  # refuses activations of other tensors
        losses += plan.losses if plan is not None else refuse_misfits(find_optional_misfits(tasks))
        written = {task.tensor_name for task in tasks if isinstance(task, SaveTensor)}
        headless = [found for found in find_missing_heads(planner, written) if found not in losses]
        losses = [*losses, *refuse_misfits(headless)]
        planned = DryRun(tasks, plan, losses)
    except DppaError:
        LoaderCache.loaders.clear()
        raise
    # mergekit raises many kinds for inputs that are missing or that it does not know.
    except Exception as problem:
        LoaderCache.loaders.clear()
        reason = _shorten(str(problem))
        raise RecipeError(f"{recipe.origin} cannot be merged ({reason}).") from problem
    try:
        yield planned
    finally:
        LoaderCache.loaders.clear()


def _shorten(text: str) -> str:
    """Return a message on one line; of a long one, such as a printed configuration, its ends."""
    line = " ".join(text.split())
    if len(line) > 200:
        first, *_, last = [part.strip() for part in text.strip().splitlines()] * 2
        line = f"{first[:120]} ... {last[-80:]}"
    return line.rstrip(".")


@contextmanager
def dry_run_again(recipe_file: Path, loading: LoadingOptions = DEFAULT_LOADING) -> Iterator[DryRun]:
    """Plan the merge of an existing merged folder once more.

    Args:
        recipe_file: The recipe that mergekit left in the folder; paths in it count from the current
            folder.
        loading: How models are loaded.

    Raises:
        DppaError: The recipe cannot be read or planned, or transformers does not know the folder's
            configuration.
    """
    from transformers import AutoConfig

    recipe, folder = Recipe.read(recipe_file), recipe_file.parent
    try:
        # Without a word on remote code, transformers would ask the user.
        config = AutoConfig.from_pretrained(folder, trust_remote_code=loading.trust_remote_code)
    # transformers raises many kinds for a configuration that it does not know.
    except Exception as problem:
        raise RecipeError(
            f"{folder}: transformers cannot read its config.json ({first_line(problem)})."
        ) from problem
    with dry_run(recipe, str(folder), config, loading) as planned:
        yield planned
