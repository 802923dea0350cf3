"""`mergekit-dppa publish`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dppa_mergekit.cli import options

if TYPE_CHECKING:
    from dppa_mergekit.checkpoints.loading_options import LoadingOptions


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("repository", metavar="REPO_ID")
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Recipe of the merge, with the files that search or adamerge wrote beside it.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="MODEL=HUB_NAME",
    help="Name on the Hub of a model of the recipe.",
)
@click.option(
    "--license", "merge_license", help="License of the merge, if its models do not agree on one."
)
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option(
    "--with-activations", is_flag=True, help="Upload the files of the recipe's activations, too."
)
@options.loading_options
@click.option(
    "--dry-run", is_flag=True, help="Write the card and list the files, but upload nothing."
)
def publish(
    folder: Path,
    repository: str,
    recipe_file: Path | None,
    names: tuple[str, ...],
    merge_license: str | None,
    private: bool,
    with_activations: bool,
    dry_run: bool,
    loading: LoadingOptions,
) -> None:
    """Complete the model card of the merge in FOLDER, and upload it to the Hub as REPO_ID.

    \b
        mergekit-dppa publish merged/ owner/name --recipe tuned.yml --dry-run
    """  # noqa: D301  # click wants a backspace before lines that it must not wrap
    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.publishing.publish import Publishing

    given: dict[str, str] = {}
    for pair in names:
        model, _, name = pair.rpartition("=")
        if not model or not name:
            raise ParameterError(f"--name is {pair}; allowed is MODEL=HUB_NAME.")
        given[model] = name
    publishing = Publishing(
        folder, repository, recipe_file, given, merge_license, private, with_activations, loading
    )
    files = publishing.prepare(dry_run)
    if dry_run:
        click.echo(f"The card is in {folder / 'README.md'}. The upload to {repository} would be:")
        for file in files:
            click.echo(f"{publishing.size(file):>14,}  {file.relative_to(folder)}")
        for path, name in publishing.activations().items() if with_activations else ():
            click.echo(f"{Path(path).stat().st_size:>14,}  {name}")
        return
    click.echo(publishing.upload(files))
