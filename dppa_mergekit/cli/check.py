"""`mergekit-dppa check`."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("path", metavar="RECIPE_OR_FOLDER", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Of a recipe: the folder that the merge will write.",
)
@click.option(
    "--lora-cache",
    type=click.Path(path_type=Path, file_okay=False),
    help="Of a recipe: what the merge will be given as --lora-merge-cache.",
)
@click.option("--sample", is_flag=True, help="Of a recipe: also read slices of the weights.")
@click.option(
    "--verify",
    type=click.Choice(["sample", "all"]),
    help="Of a folder: compute some tensors again, or all, and compare.",
)
@click.option("--json", "as_json", is_flag=True, help="Findings as JSON.")
def check(
    path: Path,
    output: Path | None,
    lora_cache: Path | None,
    sample: bool,
    verify: str | None,
    as_json: bool,
) -> None:
    r"""Say what is wrong with a recipe before a merge, or with a folder after it.

    \b
        mergekit-dppa check recipe.yml --output merged/
        mergekit-dppa check merged/ --verify sample

    The exit status is 1 if there is an error.
    """
    import json
    from dataclasses import asdict

    from dppa_mergekit.checks.check import check_folder, check_recipe
    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.report.phrases import count

    if path.is_dir() and (output is not None or lora_cache is not None or sample):
        raise ParameterError(
            "--output, --lora-cache and --sample are for a recipe; this is a folder."
        )
    if not path.is_dir() and verify is not None:
        raise ParameterError("--verify is for a folder; this is a recipe.")
    found = list(
        check_folder(path, verify)
        if path.is_dir()
        else check_recipe(path, output, sample, lora_cache)
    )
    errors = sum(each.severity == "error" for each in found)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=1))
    else:
        for each in found:
            click.echo(str(each))
        warnings = sum(each.severity == "warning" for each in found)
        click.echo(f"{path}: {count(errors, 'error')}, {count(warnings, 'warning')}")
    sys.exit(1 if errors else 0)
