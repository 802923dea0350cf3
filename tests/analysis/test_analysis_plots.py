"""Plots of an analysis, the names in them, and models without linears."""

from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import recipe, save_family

from dppa_mergekit.analysis import plots
from dppa_mergekit.analysis.advice import verdict
from dppa_mergekit.analysis.analyze import analyze
from dppa_mergekit.analysis.histogram import Histogram
from dppa_mergekit.analysis.results import Analysis, ModelAnalysis, short_names
from dppa_mergekit.recipes.recipe import Recipe


@pytest.fixture
def found(tmp_path: Path) -> Analysis:
    return analyze(Recipe(recipe(save_family(tmp_path))))


def without_linears(model: ModelAnalysis) -> ModelAnalysis:
    return ModelAnalysis(model.model, Histogram().offsets(0), (), ())


def test_the_panel_of_a_model_without_linears_is_empty(found: Analysis, tmp_path: Path) -> None:
    math, law = found.models
    mixed = replace(found, models=(math, without_linears(law)))
    panels = plots._density_figure(mixed).axes
    drawn = {panel.get_title(): len(panel.images) for panel in panels[:2]}
    assert drawn == {"math": 1, "law": 0}
    (image,) = panels[0].images
    assert image.get_array().shape == (7, 3)
    assert 0 < image.get_array().min() <= image.get_array().max() <= 1
    plots.draw_analysis(mixed, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == set(plots.PICTURES)


def test_models_without_linears_have_plots(found: Analysis, tmp_path: Path) -> None:
    empty = replace(found, models=tuple(map(without_linears, found.models)), pairs=())
    plots.draw_analysis(empty, tmp_path)
    names = {"density.png", "offsets.png", "structure.png"}
    assert {path.name for path in tmp_path.glob("*.png")} == names


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (("org/base@main", "org/base+./adapters/law"), ("base", "law")),
        (("./one/math/", "./law"), ("math", "law")),
        (("org/math@v1", "org/math@v2"), ("org/math@v1", "org/math@v2")),
    ],
)
def test_short_names(models: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert short_names(models) == dict(zip(models, names, strict=True))


def test_the_verdict_on_a_model_without_linears(found: Analysis) -> None:
    said = verdict(without_linears(found.models[0]))
    assert said == "There is nothing to prune: it has no linears."
