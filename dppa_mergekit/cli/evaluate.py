"""`mergekit-dppa evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dppa_mergekit.cli import options

if TYPE_CHECKING:
    from dppa_mergekit.checkpoints.loading_options import LoadingOptions
    from dppa_mergekit.scoring.engines import EngineName
    from dppa_mergekit.scoring.tasks import Part


@click.command()
@click.argument("models", nargs=-1)
@click.option(
    "--tasks",
    "tasks_file",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The tasks file.",
)
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Recipe to merge, evaluate and discard.",
)
@click.option(
    "--part",
    type=click.Choice(["test", "dev"]),
    default="test",
    show_default=True,
    help="Tasks to score on; a search and adamerge see the dev tasks.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the tables as Markdown and JSON, and a chart.",
)
@options.page_option
@options.placement_options
@options.engine_option
@options.scoring_options
def evaluate(
    models: tuple[str, ...],
    tasks_file: Path,
    recipes: tuple[Path, ...],
    part: Part,
    output: Path | None,
    html: bool,
    device: str,
    dtype: str,
    engine: EngineName,
    batch_size: int | None,
    limit: int | None,
    loading: LoadingOptions,
) -> None:
    """Score MODELS, and print their Task-Ratios and Domain-Ratios.

    MODELS are fine-tuned models, the base and merges, by folder or by name on the Hub:

    \b
        mergekit-dppa evaluate ./base ./merged --tasks tasks.yml
    """  # noqa: D301  # click wants a backspace before lines that it must not wrap
    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.recipes.recipe import Recipe
    from dppa_mergekit.scoring.evaluate import evaluate as score_models
    from dppa_mergekit.scoring.tables import FILE, as_markdown

    if not models and not recipes:
        raise ParameterError(
            "There is nothing to evaluate: name models, or give recipes with --recipe."
        )
    options.check_paged(html, output)
    options.check_engine(engine, device, batch_size)
    tasks = options.tasks_of(tasks_file, batch_size, limit)
    placed = options.placement(device, dtype, loading)
    for path in recipes:
        options.check_first(path, loading, weighted=True)
    read = [Recipe.read(path) for path in recipes]
    workspace = Path.cwd() if output is None else output
    options.quiet_transformers()
    named_models = [*models, *(name for recipe in read for name in recipe.models())]
    with options.placing(named_models, workspace, placed) as placement:
        found = score_models(models, tasks, read, part, output, placement, workspace, engine)
    click.echo(as_markdown(found))
    if html and output is not None:
        bars = {f"{FILE}.png": "Domain-Ratios, with standard errors; 100 is the fine-tuned model."}
        best = max(found.models, key=lambda name: found.mean_ratio(name).value)
        verdict = [f"Highest mean Domain-Ratio: {best}, {found.mean_ratio(best)} %."]
        given = [tasks_file, *recipes]
        options.write_page(output / f"{FILE}.json", "Evaluation", verdict, bars, given)
