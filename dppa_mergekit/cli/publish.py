"""`mergekit-dppa publish`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("repository", metavar="REPO_ID")
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="That the folder was merged by, with what search or adamerge wrote beside it.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="MODEL=HUB_NAME",
    help="What a model of the recipe is called on the Hub.",
)
@click.option("--license", "licence", help="Of the merge, where its sources do not agree on one.")
@click.option("--private", is_flag=True, help="For your eyes only.")
@click.option("--dry-run", is_flag=True, help="Write the card, list the files, upload nothing.")
def publish(
    folder: Path,
    repository: str,
    recipe_file: Path | None,
    names: tuple[str, ...],
    licence: str | None,
    private: bool,
    dry_run: bool,
) -> None:
    r"""Complete the model card of the merge in FOLDER, and upload it to the Hub as REPO_ID.

    \b
        mergekit-dppa publish merged/ owner/name --recipe tuned.yml --dry-run
    """
    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.publishing.publish import Publishing

    given: dict[str, str] = {}
    for each in names:
        model, _, name = each.rpartition("=")
        if not model or not name:
            raise ParameterError(f"--name {each}: allowed is MODEL=HUB_NAME.")
        given[model] = name
    publishing = Publishing(folder, repository, recipe_file, given, licence, private)
    files = publishing.prepare(dry_run)
    if dry_run:
        click.echo(f"The card is in {folder / 'README.md'}. To {repository} would go:")
        for file in files:
            click.echo(f"{file.stat().st_size:>14,}  {file.relative_to(folder)}")
        return
    click.echo(publishing.upload(files))
