"""The plot of densities in a model card."""

from __future__ import annotations

import logging
from pathlib import Path

from dppa_mergekit.analysis.analyze import analyze
from dppa_mergekit.analysis.plots import draw_density
from dppa_mergekit.checkpoints.loading_options import LoadingOptions, caching_loras
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.report.plot_style import is_installed

LOG = logging.getLogger(__name__)

PLOT = "density.png"
"""The file name of the plot in the folder of the merge."""


def plot_densities(recipe: Recipe, folder: Path, loading: LoadingOptions) -> str | None:
    """Plot the density of every linear of a recipe.

    Args:
        recipe: The recipe.
        folder: The folder of its merge, in which LoRAs may be merged for a while.
        loading: How models are loaded.

    Returns:
        The file name of the plot in the folder; None without the extra `plots`, or, with a
        warning, if the recipe cannot be analyzed.
    """
    if not is_installed():
        return None
    try:
        with caching_loras(loading, recipe.models(), folder) as cached:
            found = analyze(recipe, placement=Placement(loading=cached))
    except DppaError as problem:
        LOG.warning("The card will have no plot of the densities: %s", problem.message)
        return None
    draw_density(found, folder / PLOT)
    return PLOT
