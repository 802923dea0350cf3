"""Merge a recipe with mergekit into a folder that exists only while it is needed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dppa_mergekit.checkpoints.loading_options import DEFAULT_LOADING, LoadingOptions
from dppa_mergekit.errors import DppaError, first_line
from dppa_mergekit.merging.mergekit_hooks import listening

if TYPE_CHECKING:
    from dppa_mergekit.combination.contribution import Listener
    from dppa_mergekit.recipes.recipe import Recipe

RANDOM_SEED = 0
"""The seed of every random draw that mergekit makes in these merges."""


@contextmanager
def merge_into_folder(
    recipe: Recipe,
    workspace: Path,
    listener: Listener | None = None,
    loading: LoadingOptions = DEFAULT_LOADING,
) -> Iterator[Path]:
    """Merge a recipe into a temporary folder, which is deleted when the context ends.

    A method that draws at random draws what `mergekit-yaml --random-seed 0` draws (RANDOM_SEED).
    The state of torch's own generator is restored.

    Args:
        recipe: The recipe to merge.
        workspace: An existing folder on a disk that has room for the merged model.
        listener: Called once for each combined linear or dense tensor; only methods of this
            package call it.
        loading: How models are loaded.

    Raises:
        DppaError: The recipe cannot be merged, or the disk has no room for its merge.
    """
    with tempfile.TemporaryDirectory(prefix=".dppa-", dir=workspace) as folder:
        _merge(recipe, folder, listener, loading)
        yield Path(folder)


def _merge(recipe: Recipe, folder: str, listener: Listener | None, loading: LoadingOptions) -> None:
    """Merge a recipe into a folder. Raises DppaError as `merge_into_folder`."""
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge

    # mergekit keeps its loaders by path for the life of the process; files may have changed.
    LoaderCache.loaders.clear()
    try:
        with listening(listener), torch.random.fork_rng():
            torch.manual_seed(RANDOM_SEED)
            run_merge(recipe.configuration(), folder, loading.merge_options())
    except DppaError:
        raise
    # mergekit raises many kinds for inputs that are missing, and the system for a full disk.
    except Exception as problem:
        raise DppaError(f"{recipe.origin} cannot be merged ({first_line(problem)}).") from problem
    finally:
        LoaderCache.loaders.clear()
