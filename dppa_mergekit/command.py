"""The command line: one group, `mergekit-dppa`."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from dppa_mergekit.tasks import Part
    from dppa_mergekit.unmerged import Placement

DTYPES = ("auto", "float32", "bfloat16", "float16")


class _Commands(click.Group):
    """Commands that say where a mistake was found, if they are to say more."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except click.ClickException:
            if context.params["verbose"]:
                traceback.print_exc()
            raise


@click.group(cls=_Commands)
@click.version_option(package_name="dppa-mergekit")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr, tracebacks too.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no warnings on stderr.")
def main(verbose: bool, quiet: bool) -> None:
    """Find factors and weights of DPPA merges (arXiv 2403.02799), and check them."""
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    if quiet:
        # Read by tqdm when it is first imported.
        os.environ["TQDM_DISABLE"] = "1"


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--tasks",
    "tasks_file",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The tasks file; its dev tasks choose.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the recipe goes, with its factors filled in.",
)
@click.option(
    "--tune",
    type=click.Choice(["factors", "weights"]),
    default="factors",
    show_default=True,
    help="The factors of each model, alone on the base, or the weights of all in the whole merge.",
)
@click.option("--shared", is_flag=True, help="With weights: one for all models.")
@click.option(
    "--by",
    type=click.Choice(["mean", "worst"]),
    default="mean",
    show_default=True,
    help="With weights: which Domain-Ratio counts.",
)
@click.option(
    "--guard-loss",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="With weights: the share of the base model's score that guard tasks may lose.",
)
@click.option(
    "--strategy",
    type=click.Choice(["joint", "paper", "distill"]),
    help="Of factors. joint: all together, by coordinates. paper: the paper's hill climb. distill: "
    "the fine-tuned model teaches, and a few evaluations around its proposal decide.  "
    "[default: joint]",
)
@click.option(
    "--per-block", is_flag=True, help="With distill: factors for each block, as gradients."
)
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What the model teaches by, a line each, or .jsonl; its dev tasks' prompts if not given.",
)
@click.option(
    "--max-evaluations",
    type=click.IntRange(min=1),
    default=60,
    show_default=True,
    help="Candidates for each domain, or for the merge.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Steps without gain after which the paper's climb ends.",
)
@click.option(
    "--range",
    "range_",
    type=(click.FloatRange(min=0), click.FloatRange(min=0)),
    help="The least and the largest value.  [default: 0.2 3; of dare_dpa 0.1 1; of weights 0 1.5]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Deals out the items.")
@click.option("--tune-dense", is_flag=True, help="Tune amplify_dense too.")
@click.option(
    "--device", default="cpu", show_default=True, help="Where models live: cpu, cuda, ..."
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    show_default=True,
    help="Of the live weights; auto is as they are stored.",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="In place of the tasks file's.")
@click.option("--limit", type=click.IntRange(min=1), help="In place of the tasks file's.")
@click.option(
    "--score-command",
    help="Scores in place of lm-eval: a shell command with {model} for a merged folder, that "
    'prints JSON, as in {"task": 0.5}.',
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Try candidates in so many processes, each with its own model (and GPU, with cuda).",
)
@click.option("--ray-address", help="Of a Ray cluster for the workers, in place of this machine.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a model.")
def search(
    recipe: Path,
    tasks_file: Path,
    output: Path,
    tune: str,
    shared: bool,
    by: str,
    guard_loss: float,
    strategy: str | None,
    per_block: bool,
    prompts_file: Path | None,
    max_evaluations: int,
    patience: int,
    range_: tuple[float, float] | None,
    seed: int,
    tune_dense: bool,
    device: str,
    dtype: str,
    batch_size: int | None,
    limit: int | None,
    score_command: str | None,
    workers: int | None,
    ray_address: str | None,
    trust_remote_code: bool,
) -> None:
    r"""Find the factors of RECIPE's models, each alone on the base, or its weights, by evaluation.

    \b
        mergekit-dppa search recipe.yml --tasks tasks.yml --output tuned.yml

    Killed, the same command goes on where it was.
    """
    from dataclasses import replace

    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.prompts import read_prompts
    from dppa_mergekit.recipes import Recipe
    from dppa_mergekit.summary import written
    from dppa_mergekit.tasks import TasksFile
    from dppa_mergekit.tuning import WEIGHT_OPTIONS, Search, WholeMerge, default_options
    from dppa_mergekit.workers import Cluster

    _check_first(recipe)
    read = Recipe.read(recipe)
    tasks = TasksFile.read(tasks_file)
    changes = {"batch_size": batch_size, "limit": limit}
    tasks = tasks.model_copy(update={key: value for key, value in changes.items() if value})
    merge = WholeMerge(shared, by == "worst", guard_loss) if tune == "weights" else None
    defaults = default_options(read.method) if merge is None else WEIGHT_OPTIONS
    options = replace(
        defaults,
        strategy=strategy or defaults.strategy,
        max_evaluations=max_evaluations,
        patience=patience,
        seed=seed,
        per_block=per_block,
    )
    if range_ is not None:
        low, high = range_
        if not (low <= 1 <= high if merge is None else low < high):
            allowed = "with 1 in it" if merge is None else "from less to more"
            raise ParameterError(f"--range is {low:g} {high:g}; allowed is a range {allowed}.")
        options = replace(options, low=low, high=high)
    placement = _placement(device, dtype, trust_remote_code)
    prompts = None if prompts_file is None else [each.text for each in read_prompts(prompts_file)]
    _quiet_transformers()
    if ray_address is not None and workers is None:
        raise ParameterError("--ray-address says where workers run; it needs --workers.")
    cluster = None if workers is None else Cluster(workers, ray_address)
    run = Search(
        read, tasks, output, options, placement, tune_dense, score_command, prompts, merge, cluster
    )
    try:
        found = run.run()
    except KeyboardInterrupt:
        _interrupted(output)
    for each in found:
        factors = ", ".join(f"{name} {written(factor)}" for name, factor in each.factors.items())
        click.echo(
            f"{each.domain}: {factors}; dev Domain-Ratio {each.before} -> {each.after} "
            f"({each.evaluations} candidates, {each.seconds:.0f} s)"
        )
        for name, (before, after) in each.parts.items():
            click.echo(f"  {name}: {before} -> {after}")
    click.echo(f"{output}: the recipe with these {tune}")


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--prompts",
    "prompts_files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A domain's prompts, a line each, or .jsonl; the file is named after the domain. Once for "
    "each domain; the prompts of the dev tasks if not given.",
)
@click.option(
    "--tasks",
    "tasks_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A tasks file: its dev tasks choose the best state, and say which model is of which "
    "domain.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the recipe goes, with its weights filled in.",
)
@click.option(
    "--objective",
    type=click.Choice(["distill", "entropy", "loss"]),
    default="distill",
    show_default=True,
    help="distill: the divergence to what each domain's own model answers. entropy: that of the "
    "next token (the paper's). loss: of given completions.",
)
@click.option(
    "--granularity",
    type=click.Choice(["block", "model"]),
    default="block",
    show_default=True,
    help="A weight for each model and block, or for each model.",
)
@click.option("--steps", type=click.IntRange(min=1), default=200, show_default=True)
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-3,
    show_default=True,
    help="How far a weight moves in a step, at most.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Prompts of each domain in a step.",
)
@click.option(
    "--anchor",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="How much weights are drawn to where they started.",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Steps from one state that is kept, and scored on the dev tasks, to the next.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Dev scores in a row without gain after which learning ends.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Orders the prompts.")
@click.option(
    "--device", default="cpu", show_default=True, help="Where models live: cpu, cuda, ..."
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    show_default=True,
    help="Of the live weights; auto is as they are stored.",
)
@click.option(
    "--gradient-checkpointing", is_flag=True, help="Less memory for activations, more time."
)
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a model.")
def adamerge(
    recipe: Path,
    prompts_files: tuple[Path, ...],
    tasks_file: Path | None,
    output: Path,
    objective: str,
    granularity: str,
    steps: int,
    lr: float,
    batch_size: int,
    anchor: float,
    every: int,
    patience: int,
    seed: int,
    device: str,
    dtype: str,
    gradient_checkpointing: bool,
    trust_remote_code: bool,
) -> None:
    r"""Learn the weights of RECIPE's models, block by block, from prompts (AdaMerging).

    \b
        mergekit-dppa adamerge recipe.yml --prompts math.txt --prompts law.txt \\
            --output tuned.yml

    Killed, the same command goes on where it was.
    """
    from dppa_mergekit.adamerging import Descent
    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.learning import AdaMerge
    from dppa_mergekit.prompts import read_prompts
    from dppa_mergekit.recipes import Recipe
    from dppa_mergekit.tasks import TasksFile

    _check_first(recipe)
    read = Recipe.read(recipe)
    tasks = None if tasks_file is None else TasksFile.read(tasks_file)
    prompts = {path.stem: read_prompts(path) for path in prompts_files}
    if len(prompts) < len(prompts_files):
        raise ParameterError("--prompts: two files have one name; allowed is one for each domain.")
    placement = _placement(device, dtype, trust_remote_code)
    descent = Descent(
        steps,
        lr,
        batch_size,
        anchor,
        granularity == "block",
        every,
        patience,
        gradient_checkpointing,
        seed,
    )
    run = AdaMerge(read, prompts, tasks, output, objective, descent, placement)
    _quiet_transformers()
    try:
        found = run.run()
    except KeyboardInterrupt:
        _interrupted(output)
    first, best = found.states[0], found.best
    for model, before, row in zip(found.weights, first.weights, best.settled, strict=True):
        learned = f"{sum(row) / len(row):.3f}"
        spread = f" ({min(row):.3f} to {max(row):.3f})" if len(row) > 1 else ""
        click.echo(f"{model}: weight {sum(before) / len(before):.3f} -> {learned}{spread}")
    if first.evaluation is not None and best.evaluation is not None:
        click.echo(
            f"dev Domain-Ratio {first.evaluation.estimate} -> {best.evaluation.estimate} "
            f"(after {best.step} of {found.states[-1].step} steps)"
        )
        for name, part in best.evaluation.parts.items():
            click.echo(f"  {name}: {first.evaluation.parts[name]} -> {part}")
    click.echo(f"{output}: the recipe with these weights")


@main.command()
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
    help="A merge that is made for this and not kept.",
)
@click.option(
    "--part",
    type=click.Choice(["test", "dev"]),
    default="test",
    show_default=True,
    help="On which tasks; dev is what was tuned on.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder for the tables as Markdown and JSON, and a chart.",
)
@click.option(
    "--device", default="cpu", show_default=True, help="Where models live: cpu, cuda, ..."
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    show_default=True,
    help="Of the live weights; auto is as they are stored.",
)
@click.option("--batch-size", type=click.IntRange(min=1), help="In place of the tasks file's.")
@click.option("--limit", type=click.IntRange(min=1), help="In place of the tasks file's.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a model.")
def evaluate(
    models: tuple[str, ...],
    tasks_file: Path,
    recipes: tuple[Path, ...],
    part: Part,
    output: Path | None,
    device: str,
    dtype: str,
    batch_size: int | None,
    limit: int | None,
    trust_remote_code: bool,
) -> None:
    r"""Score MODELS, and print their Task-Ratios and Domain-Ratios.

    Fine-tuned models, the base and merges, by folder or name:

    \b
        mergekit-dppa evaluate ./base ./merged --tasks tasks.yml
    """
    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.evaluating import Evaluating
    from dppa_mergekit.evaluation import as_markdown
    from dppa_mergekit.recipes import Recipe
    from dppa_mergekit.tasks import TasksFile

    if not models and not recipes:
        raise ParameterError("There is nothing to evaluate: name models, or recipes by --recipe.")
    tasks = TasksFile.read(tasks_file)
    changes = {"batch_size": batch_size, "limit": limit}
    tasks = tasks.model_copy(update={key: value for key, value in changes.items() if value})
    placement = _placement(device, dtype, trust_remote_code)
    read = [Recipe.read(path) for path in recipes]
    workspace = Path.cwd() if output is None else output
    _quiet_transformers()
    found = Evaluating(
        list(dict.fromkeys(models)), read, tasks, part, output, placement, workspace
    ).run()
    click.echo(as_markdown(found))


@main.command()
@click.argument("path", metavar="RECIPE_OR_FOLDER", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Of a recipe: the folder that the merge will write.",
)
@click.option("--sample", is_flag=True, help="Of a recipe: also read slices of the weights.")
@click.option(
    "--verify",
    type=click.Choice(["sample", "all"]),
    help="Of a folder: compute some tensors again, or all, and compare.",
)
@click.option("--json", "as_json", is_flag=True, help="Findings as JSON.")
def check(path: Path, output: Path | None, sample: bool, verify: str | None, as_json: bool) -> None:
    r"""Say what is wrong with a recipe before a merge, or with a folder after it.

    \b
        mergekit-dppa check recipe.yml --output merged/
        mergekit-dppa check merged/ --verify sample

    The exit status is 1 if there is an error.
    """
    import json
    from dataclasses import asdict

    from dppa_mergekit.checking import check_folder, check_recipe
    from dppa_mergekit.errors import ParameterError

    if path.is_dir() and (output is not None or sample):
        raise ParameterError("--output and --sample are for a recipe; this is a folder.")
    if not path.is_dir() and verify is not None:
        raise ParameterError("--verify is for a folder; this is a recipe.")
    found = list(
        check_folder(path, verify) if path.is_dir() else check_recipe(path, output, sample)
    )
    errors = sum(each.severity == "error" for each in found)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=1))
    else:
        for each in found:
            click.echo(str(each))
        warnings = sum(each.severity == "warning" for each in found)
        click.echo(f"{path}: {_counted(errors, 'error')}, {_counted(warnings, 'warning')}")
    sys.exit(1 if errors else 0)


def _check_first(recipe: Path) -> None:
    """Refuse a recipe in which `check` finds an error; say what else it finds."""
    from dppa_mergekit.checking import check_recipe
    from dppa_mergekit.errors import RecipeError

    found = list(check_recipe(recipe, None, sample=False))
    errors = [each for each in found if each.severity == "error"]
    for each in found:
        if each.severity == "warning":
            logging.getLogger(__name__).warning("%s", each)
    if errors:
        more = f" (and {len(errors) - 1} more: mergekit-dppa check)" if len(errors) > 1 else ""
        raise RecipeError(f"{recipe}: {errors[0].subject}: {errors[0].sentence}{more}")


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number != 1)}"


def _placement(device: str, dtype: str, trust_remote_code: bool) -> Placement:
    import torch

    from dppa_mergekit.unmerged import Placement

    return Placement(device, None if dtype == "auto" else getattr(torch, dtype), trust_remote_code)


def _interrupted(output: Path) -> NoReturn:
    kept = f"the best so far is in {output}; " if output.exists() else ""
    click.echo(f"\nInterrupted; {kept}the same command goes on.", err=True)
    sys.exit(130)


def _quiet_transformers() -> None:
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]
