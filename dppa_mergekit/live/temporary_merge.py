"""Merge a recipe with mergekit into a folder that exists only while it is needed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dppa_mergekit.checkpoints.loading_options import DEFAULT_LOADING, LoadingOptions
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
        DppaError: The recipe cannot be merged.
    """
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import run_merge

    options = loading.merge_options()
    with tempfile.TemporaryDirectory(prefix=".dppa-", dir=workspace) as folder:
        # mergekit keeps its loaders by path for the life of the process; files may have changed.
        LoaderCache.loaders.clear()
        with listening(listener), torch.random.fork_rng():
            torch.manual_seed(RANDOM_SEED)
            run_merge(recipe.configuration(), folder, options)
        LoaderCache.loaders.clear()
        yield Path(folder)
