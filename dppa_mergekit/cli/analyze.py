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
    help="A folder for all tables, analysis.json and, with the extra `plots`, pictures.",
)
@click.option(
    "--prompts",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Prompts by which DARE and DP are compared: of the model that is named as the file is, "
    "or else of all.",
)
@options.paged
@options.placed
def analyze(
    recipe: Path,
    output: Path | None,
    files: tuple[Path, ...],
    html: bool,
    device: str,
    dtype: str,
    trust_remote_code: bool,
) -> None:
    r"""Say what the deltas of RECIPE are like, what it keeps, and whether DARE would do.

    \b
        mergekit-dppa analyze recipe.yml --output analysis/
    """
    from dppa_mergekit.analysis.analyze import FILE, assign_prompts, write_analysis
    from dppa_mergekit.analysis.analyze import analyze as analyze_deltas
    from dppa_mergekit.analysis.plots import PICTURES
    from dppa_mergekit.analysis.results import verdict
    from dppa_mergekit.analysis.tables import overview
    from dppa_mergekit.recipes import Recipe
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
            verdicts = [f"{each.model}: {verdict(each)}" for each in found.models]
            title = f"Deltas of {recipe.name}"
            options.write_page(path, title, verdicts, PICTURES, [recipe, *files])
    click.echo(overview(found), nl=False)
