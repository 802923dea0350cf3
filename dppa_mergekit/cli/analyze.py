"""`mergekit-dppa analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dppa_mergekit.cli import options

if TYPE_CHECKING:
    from dppa_mergekit.checkpoints.loading_options import LoadingOptions


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for all tables, analysis.json and, with the extra `plots`, plots.",
)
@click.option(
    "--prompts",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Prompts on which methods and combinations are compared. A file named after a model "
    "belongs to that model; other files serve all other models.",
)
@options.page_option
@options.placement_options
def analyze(
    recipe: Path,
    output: Path | None,
    files: tuple[Path, ...],
    html: bool,
    device: str,
    dtype: str,
    loading: LoadingOptions,
) -> None:
    """Analyze the deltas of RECIPE: their size, the kept elements, and which methods would do.

    Of several recipes, as mergekit-multi takes them, each stage is analyzed by itself.

    \b
        mergekit-dppa analyze recipe.yml --output analysis/
    """  # noqa: D301  # click wants a backspace before lines that it must not wrap
    from dppa_mergekit.analysis.advice import verdicts
    from dppa_mergekit.analysis.analyze import FILE, assign_prompts, write_analysis
    from dppa_mergekit.analysis.analyze import analyze as analyze_deltas
    from dppa_mergekit.analysis.plots import PICTURES
    from dppa_mergekit.analysis.tables import overview
    from dppa_mergekit.recipes.recipe import Recipe
    from dppa_mergekit.recipes.stages import read_stages, recipe_of
    from dppa_mergekit.storage.output_files import check_output_folder

    options.check_paged(html, output)
    if output is not None:
        check_output_folder(output, f"{FILE}.json")
    options.check_first(recipe, loading)
    stages = read_stages(recipe)
    placed = options.placement(device, dtype, loading)
    options.quiet_transformers()
    for stage in stages:
        if stage.uses:
            click.echo(
                f"{stage.title}: it merges the output of {', '.join(stage.uses)}, which is not "
                f"there yet, so its deltas are not known.\n"
            )
            continue
        folder = output
        if len(stages) > 1:
            click.echo(f"{stage.title}:\n")
            # A name may be a path, and the last parts of two may be the same.
            name = (stage.name or "final merge").replace("/", "_")
            folder = None if output is None else output / name
        read = recipe_of(stage, recipe) if len(stages) > 1 else Recipe.read(recipe)
        prompts = assign_prompts(read, files)
        workspace = Path.cwd() if folder is None else folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        with options.placing(read.models(), workspace, placed) as placement:
            found = analyze_deltas(read, prompts, placement, workspace)
        if folder is not None:
            path = write_analysis(found, read, folder)
            if html:
                said = [f"{name}: {sentences}" for name, sentences in verdicts(found)]
                title = f"Deltas of {recipe.name}"
                options.write_page(path, title, said, PICTURES, [recipe, *files])
        click.echo(overview(found), nl=False)
