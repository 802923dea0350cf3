"""`mergekit-dppa analyze`."""

from __future__ import annotations

from pathlib import Path

import click

from dppa_mergekit.cli import options


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
    help="Prompts on which DARE and DP are compared. A file named after a model belongs to that "
    "model; other files serve all other models.",
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
    trust_remote_code: bool,
) -> None:
    """Analyze the deltas of RECIPE: their size, the kept elements, and whether DARE would do.

    \b
        mergekit-dppa analyze recipe.yml --output analysis/
    """  # noqa: D301  # click wants a backspace before lines that it must not wrap
    from dppa_mergekit.analysis.analyze import FILE, assign_prompts, write_analysis
    from dppa_mergekit.analysis.analyze import analyze as analyze_deltas
    from dppa_mergekit.analysis.plots import PICTURES
    from dppa_mergekit.analysis.results import verdict
    from dppa_mergekit.analysis.tables import overview
    from dppa_mergekit.recipes.recipe import Recipe
    from dppa_mergekit.storage.output_files import check_output_folder

    options.check_paged(html, output)
    if output is not None:
        check_output_folder(output, f"{FILE}.json")
    options.check_first(recipe)
    read = Recipe.read(recipe)
    prompts = assign_prompts(read, files)
    placement = options.placement(device, dtype, trust_remote_code)
    options.quiet_transformers()
    workspace = Path.cwd() if output is None else output
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    found = analyze_deltas(read, prompts, placement, workspace)
    if output is not None:
        path = write_analysis(found, read, output)
        if html:
            verdicts = [f"{model.model}: {verdict(model)}" for model in found.models]
            title = f"Deltas of {recipe.name}"
            options.write_page(path, title, verdicts, PICTURES, [recipe, *files])
    click.echo(overview(found), nl=False)
