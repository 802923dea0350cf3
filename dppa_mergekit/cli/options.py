"""Options, checks and endings that several commands share."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from dppa_mergekit.checkpoints.loading_options import LoadingOptions
    from dppa_mergekit.live.placement import Placement
    from dppa_mergekit.prompts import Prompt
    from dppa_mergekit.scoring.engines import EngineName
    from dppa_mergekit.scoring.tasks import TasksFile

LOG = logging.getLogger(__name__)

UNPICKLES_LAZILY = sys.version_info < (3, 13)
"""Whether mergekit 0.1.5 can read .bin files tensor by tensor: from Python 3.13 on, the method that
torch sets on an unpickler comes before that of mergekit's class."""

DTYPES = ("auto", "float32", "bfloat16", "float16")

Command = TypeVar("Command", bound=Callable[..., object])


def loading_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add mergekit's options of how models are loaded; the command gets them as `loading`."""
    from dppa_mergekit.checkpoints.loading_options import LoadingOptions
    from dppa_mergekit.errors import ParameterError

    names = [field.name for field in fields(LoadingOptions)]

    @wraps(command)
    def with_loading(**given: object) -> object:
        chosen = {name: given.pop(name) for name in names}
        if chosen["lazy_unpickle"] and not UNPICKLES_LAZILY:
            raise ParameterError(
                "--lazy-unpickle does not work on Python 3.13 (mergekit 0.1.5): leave it out, or "
                "use Python 3.10 to 3.12."
            )
        return command(loading=LoadingOptions(**chosen), **given)  # type: ignore[arg-type]

    wrapped: Callable[..., object] = with_loading
    for option in (
        click.option("--allow-crimes", is_flag=True, help="Mix architectures."),
        click.option(
            "--unsafe-truncate-embeddings",
            is_flag=True,
            help="Cut off the last rows of longer embeddings.",
        ),
        click.option("--lazy-unpickle", is_flag=True, help="Read .bin files tensor by tensor."),
        click.option(
            "--transformers-cache",
            type=click.Path(file_okay=False),
            help="Folder for models from the Hub.",
        ),
        click.option(
            "--lora-merge-dtype",
            type=click.Choice(DTYPES[1:]),
            help="Dtype in which LoRAs are merged.",
        ),
        click.option(
            "--lora-merge-cache",
            type=click.Path(file_okay=False),
            help="Folder where mergekit keeps models with their LoRA merged.",
        ),
        click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a model."),
    ):
        wrapped = option(wrapped)
    return wrapped


def placement_options(command: Callable[..., object]) -> Callable[..., object]:
    """Add the options for device, dtype and loading; see `placement`."""
    command = loading_options(command)
    for option in (
        click.option(
            "--dtype",
            type=click.Choice(DTYPES),
            default="auto",
            show_default=True,
            help="Dtype of the models in memory; auto keeps that of the files.",
        ),
        click.option(
            "--device",
            default="cpu",
            show_default=True,
            help="Device of the models: cpu, cuda, ...",
        ),
    ):
        command = option(command)
    return command


def scoring_options(command: Command) -> Command:
    """Add the options that override settings of the tasks file; see `tasks_of`."""
    instead = "Overrides the setting in the tasks file."
    for name in ("--limit", "--batch-size"):
        command = click.option(name, type=click.IntRange(min=1), help=instead)(command)
    return command


engine_option = click.option(
    "--engine",
    type=click.Choice(["transformers", "vllm"]),
    default="transformers",
    show_default=True,
    help="The library that runs models for lm-eval; vllm needs the extra `vllm`, and chooses the "
    "device itself.",
)
"""The option for the engine; see `scoring.engines`."""


def check_engine(engine: EngineName, device: str, batch_size: int | None) -> None:
    """Refuse options that vLLM does not heed."""
    if engine == "vllm":
        idle = {"--device": device != "cpu", "--batch-size": batch_size is not None}
        refuse_idle(idle, "--engine transformers")


def tasks_of(path: Path, batch_size: int | None, limit: int | None) -> TasksFile:
    """Read a tasks file; settings that are given override its own."""
    from dppa_mergekit.scoring.tasks import TasksFile

    changes = {"batch_size": batch_size, "limit": limit}
    return TasksFile.read(path).model_copy(
        update={key: value for key, value in changes.items() if value}
    )


def placement(device: str, dtype: str, loading: LoadingOptions) -> Placement:
    """Where and how models are held, from the options.

    Raises:
        ParameterError: torch knows no such device; one that this machine lacks is found only later.
    """
    import torch

    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.live.placement import Placement

    try:
        torch.device(device)
    except RuntimeError:
        raise ParameterError(
            f"--device is {device!r}; allowed is a device of torch, as cpu, cuda, cuda:1 or mps."
        ) from None
    return Placement(device, None if dtype == "auto" else getattr(torch, dtype), loading)


@contextmanager
def placing(models: Sequence[str], workspace: Path, placed: Placement) -> Iterator[Placement]:
    """Give LoRAs a temporary cache, if they need one and have none.

    Args:
        models: The models, as recipes spell them.
        workspace: A folder on a disk that has room for the merged models; it is made if missing.
        placed: Where and how models are held.
    """
    from dataclasses import replace

    from dppa_mergekit.checkpoints.loading_options import caching_loras

    with caching_loras(placed.loading, models, workspace) as loading:
        yield replace(placed, loading=loading)


page_option = click.option(
    "--html",
    is_flag=True,
    help="Also write everything as one HTML page (extra `html`).",
)
"""The option for an HTML page; see `write_page`."""


def write_page(
    output: Path,
    title: str,
    verdict: Sequence[str],
    pictures: Mapping[str, str],
    files: Sequence[Path],
) -> None:
    """Write an HTML page beside the output of a command.

    Args:
        output: Output of the command; its tables are beside it in a .md file.
        title: Title of the page.
        verdict: Sentences.
        pictures: File name, beside the output -> caption.
        files: Files that the command was given.
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
    """Refuse --html without its extra, or without an output to write the page beside."""
    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.report.html_page import check_installed

    if html and output is None:
        raise ParameterError("--html needs --output, the folder for the page.")
    if html:
        check_installed()


class Finite(click.FloatRange):
    """A finite number in a range."""

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def check_apart(output: Path, given: Sequence[Path | None]) -> None:
    """Refuse an output that would overwrite an input, itself or by a summary, figure or page."""
    from dppa_mergekit.errors import ParameterError

    inputs = {path.resolve() for path in given if path is not None}
    for file in (output, *map(output.with_suffix, (".md", ".png", ".html"))):
        if file.resolve() in inputs:
            raise ParameterError(
                f"--output {output} would overwrite {file}, which is an input of the command: "
                f"name another file."
            )


def refuse_idle(given: Mapping[str, object], needs: str) -> None:
    """Refuse options that would have no effect.

    Args:
        given: Option -> its value, false if it is not given.
        needs: The option or value that they need.
    """
    from dppa_mergekit.errors import ParameterError

    for option, value in given.items():
        if value:
            raise ParameterError(f"{option} has no effect here: it needs {needs}.")


def read_prompts_files(files: tuple[Path, ...]) -> dict[str, list[Prompt]]:
    """Domain -> the prompts of the file that is named after it.

    Raises:
        ParameterError: Two files have the same name.
    """
    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.prompts import read_prompts

    prompts = {path.stem: read_prompts(path) for path in files}
    if len(prompts) < len(files):
        raise ParameterError(
            "--prompts: two files have the same name; allowed is one file for every domain."
        )
    return prompts


def check_first(recipe: Path, loading: LoadingOptions, weighted: bool = False) -> None:
    """Refuse a recipe in which `check` finds an error; log its warnings.

    Args:
        recipe: File of the recipe.
        loading: How models are loaded.
        weighted: Whether every model must have a weight already.
    """
    from dppa_mergekit.checks.check import check_recipe
    from dppa_mergekit.checks.missing_tensors import TRUST, find_needed_options
    from dppa_mergekit.errors import RecipeError
    from dppa_mergekit.recipes.yaml_text import read_documents

    findings = [
        finding
        for finding in check_recipe(recipe, None, False, loading, weighted)
        if finding.subject != "merge_method" or not _is_of_another_plugin(recipe)
    ]
    errors = [finding for finding in findings if finding.severity == "error"]
    for finding in findings:
        if finding.severity == "warning":
            LOG.warning("%s", finding)
    if errors:
        more = f" (and {len(errors) - 1} more: mergekit-dppa check)" if len(errors) > 1 else ""
        raise RecipeError(f"{recipe}: {errors[0].subject}: {errors[0].sentence}{more}")
    for content in read_documents(recipe):
        if TRUST in find_needed_options(content, loading):
            raise RecipeError(
                f"{recipe}: a model comes with code of its own, which only runs with {TRUST}."
            )


def _is_of_another_plugin(recipe: Path) -> bool:
    """Whether mergekit knows the method of a recipe that `check` does not know."""
    from mergekit.merge_methods import registered_methods

    from dppa_mergekit.recipes.recipe import Recipe

    method = Recipe.read(recipe).content.get("merge_method")
    return method in {known.spec.name for known in registered_methods()}


def interrupted(output: Path) -> NoReturn:
    """End the process as after Ctrl-C, and say how to continue."""
    kept = f"the best so far is in {output}; " if output.exists() else ""
    click.echo(f"\nInterrupted; {kept}run the same command again to continue.", err=True)
    sys.exit(130)


def quiet_transformers() -> None:
    """Turn off the progress bars and the advice of transformers."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
