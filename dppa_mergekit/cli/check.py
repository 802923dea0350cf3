"""`mergekit-dppa check`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from dppa_mergekit.cli import options

if TYPE_CHECKING:
    from dppa_mergekit.checkpoints.loading_options import LoadingOptions

LOG = logging.getLogger(__name__)


@click.command()
@click.argument("path", metavar="RECIPE_OR_FOLDER", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="For a recipe: the folder that the merge will write.",
)
@click.option("--sample", is_flag=True, help="For a recipe: also read samples of the weights.")
@click.option(
    "--verify",
    type=click.Choice(["sample", "all"]),
    help="For a folder: compute more than one tensor of each shard again, and compare.",
)
@click.option(
    "--quick",
    is_flag=True,
    help="Leave out what takes seconds: mergekit's plan of a recipe's merge; one tensor of each "
    "shard of a folder, computed again.",
)
@options.loading_options
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(
    path: Path,
    output: Path | None,
    sample: bool,
    verify: Literal["sample", "all"] | None,
    quick: bool,
    as_json: bool,
    loading: LoadingOptions,
) -> None:
    """Check a recipe before the merge, or the merged folder after it.

    \b
        mergekit-dppa check recipe.yml --output merged/
        mergekit-dppa check merged/ --verify sample

    The exit status is 1 if there is an error.
    """  # noqa: D301  # click wants a backspace before lines that it must not wrap
    import json
    from dataclasses import asdict

    from dppa_mergekit.checks.check import check_folder, check_recipe
    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.report.phrases import count

    if path.is_dir() and (output is not None or sample):
        raise ParameterError("--output and --sample are for a recipe; this is a folder.")
    if not path.is_dir() and verify is not None:
        raise ParameterError("--verify is for a folder; this is a recipe.")
    found = (
        check_folder(path, verify, loading, quick, _say_so)
        if path.is_dir()
        else check_recipe(path, output, sample, loading, quick=quick, begin_plan=_say_so)
    )
    findings = []
    for finding in found:
        findings.append(finding)
        if not as_json:
            click.echo(str(finding))
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        warnings = sum(finding.severity == "warning" for finding in findings)
        click.echo(f"{path}: {count(errors, 'error')}, {count(warnings, 'warning')}")
    sys.exit(1 if errors else 0)


def _say_so() -> None:
    """Say that the rest takes seconds."""
    if LOG.isEnabledFor(logging.WARNING):
        click.echo("asking mergekit (--quick leaves this out)", err=True)
