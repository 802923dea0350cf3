"""What several commands share: options, and what is done before and after."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from dppa_mergekit.live.source_model import Placement
    from dppa_mergekit.scoring.tasks import TasksFile

LOG = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")

Command = TypeVar("Command", bound=Callable[..., object])


def placed(command: Command) -> Command:
    """Options about where and how models are held; see `placement`."""
    for option in (
        click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a model."),
        click.option(
            "--dtype",
            type=click.Choice(DTYPES),
            default="auto",
            show_default=True,
            help="Of the live weights; auto is as they are stored.",
        ),
        click.option(
            "--device", default="cpu", show_default=True, help="Where models live: cpu, cuda, ..."
        ),
    ):
        command = option(command)
    return command


def scored(command: Command) -> Command:
    """Options that change a tasks file's settings; see `tasks_of`."""
    instead = "In place of the tasks file's."
    for name in ("--limit", "--batch-size"):
        command = click.option(name, type=click.IntRange(min=1), help=instead)(command)
    return command


def tasks_of(path: Path, batch_size: int | None, limit: int | None) -> TasksFile:
    """A tasks file, with settings changed where they are given."""
    from dppa_mergekit.scoring.tasks import TasksFile

    changes = {"batch_size": batch_size, "limit": limit}
    return TasksFile.read(path).model_copy(
        update={key: value for key, value in changes.items() if value}
    )


def placement(device: str, dtype: str, trust_remote_code: bool) -> Placement:
    """Where and how models are held."""
    import torch

    from dppa_mergekit.live.source_model import Placement

    return Placement(device, None if dtype == "auto" else getattr(torch, dtype), trust_remote_code)


paged = click.option(
    "--html",
    is_flag=True,
    help="Also write all of it as one page for a browser (extra `html`).",
)
"""See `write_page`."""


def write_page(
    output: Path,
    title: str,
    verdict: Sequence[str],
    pictures: Mapping[str, str],
    files: Sequence[Path],
) -> None:
    """Write a page beside what a command wrote.

    Args:
        output: What the command wrote; its tables are beside it in a .md file.
        title: Of the page.
        verdict: Sentences.
        pictures: File name, beside the output -> what it shows.
        files: What the command was given.
    """
    from dppa_mergekit.report.html_page import Page, Picture, render
    from dppa_mergekit.storage.output_files import write_whole

    page = Page(
        title,
        verdict,
        [Picture(output.with_name(name), caption) for name, caption in pictures.items()],
        output.with_suffix(".md").read_text(encoding="utf-8"),
        [Path(sys.argv[0]).name, *sys.argv[1:]],
        {str(path): path.read_text(encoding="utf-8") for path in files},
    )
    path = output.with_suffix(".html")
    write_whole(path, render(page))
    click.echo(f"{path}: the page", err=True)


def check_paged(html: bool, output: Path | None) -> None:
    """Refuse --html where its extra is missing, or nothing is written that it could be beside."""
    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.report.html_page import check_installed

    if html and output is None:
        raise ParameterError("--html is written to a folder: give --output.")
    if html:
        check_installed()


class Finite(click.FloatRange):
    """A number in a range, and neither infinite nor none."""

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


def check_apart(output: Path, given: Sequence[Path | None]) -> None:
    """Refuse an output that would take the place of what the command is given."""
    from dppa_mergekit.errors import ParameterError

    for path in given:
        if path is not None and output.resolve() == path.resolve():
            raise ParameterError(f"--output {output} is what the command reads: name another file.")


def refuse_idle(given: Mapping[str, object], needs: str) -> None:
    """Refuse options that would do nothing.

    Args:
        given: Option -> its value, false where it is not given.
        needs: What they are for.
    """
    from dppa_mergekit.errors import ParameterError

    for option, value in given.items():
        if value:
            raise ParameterError(f"{option} does nothing here: it needs {needs}.")


def check_first(recipe: Path, weighted: bool = False) -> None:
    """Refuse a recipe in which `check` finds an error; say what else it finds.

    Args:
        recipe: Its file.
        weighted: Whether weights must be there already.
    """
    from dppa_mergekit.checks.check import check_recipe
    from dppa_mergekit.errors import RecipeError

    found = [
        each
        for each in check_recipe(recipe, None, sample=False, weighted=weighted)
        if each.subject != "merge_method" or not _is_of_another_plugin(recipe)
    ]
    errors = [each for each in found if each.severity == "error"]
    for each in found:
        if each.severity == "warning":
            LOG.warning("%s", each)
    if errors:
        more = f" (and {len(errors) - 1} more: mergekit-dppa check)" if len(errors) > 1 else ""
        raise RecipeError(f"{recipe}: {errors[0].subject}: {errors[0].sentence}{more}")


def _is_of_another_plugin(recipe: Path) -> bool:
    """Whether mergekit knows the method of a recipe, where `check` does not."""
    from mergekit.merge_methods import registered_methods

    from dppa_mergekit.recipes import Recipe

    method = Recipe.read(recipe).content.get("merge_method")
    return method in {each.spec.name for each in registered_methods()}


def interrupted(output: Path) -> NoReturn:
    """End as after Ctrl-C, and say how to go on."""
    kept = f"the best so far is in {output}; " if output.exists() else ""
    click.echo(f"\nInterrupted; {kept}the same command goes on.", err=True)
    sys.exit(130)


def quiet_transformers() -> None:
    """No progress bars and no advice from transformers."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
