"""`mergekit-dppa search`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dppa_mergekit.cli import options

if TYPE_CHECKING:
    from dppa_mergekit.checkpoints.loading_options import LoadingOptions
    from dppa_mergekit.search.candidate_search import SearchResult
    from dppa_mergekit.search.options import Options
    from dppa_mergekit.search.recipe_search import RecipeSearch

CURVES = (
    "Dev Domain-Ratio by factor, with the other factors as found (as in the paper's Fig. 2). "
    "A dotted line marks the factor found."
)
"""The caption of the plot."""


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--tasks",
    "tasks_file",
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The tasks file. Its dev tasks score the candidates.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file for the recipe with the factors or weights found.",
)
@click.option(
    "--tune",
    type=click.Choice(["factors", "weights", "merge-factors"]),
    default="factors",
    show_default=True,
    help="factors: those of every model, alone on the base. weights: those of all models, in the "
    "whole merge. merge-factors: the factors of all models, in the whole merge.",
)
@click.option("--shared", is_flag=True, help="For weights: tune one weight that all models share.")
@click.option(
    "--by",
    type=click.Choice(["mean", "worst"]),
    default="mean",
    show_default=True,
    help="For the whole merge: compare candidates by the mean or by the worst Domain-Ratio.",
)
@click.option(
    "--guard-loss",
    type=options.Finite(0, 1),
    help="For the whole merge: the share of the base model's score that a guard task may lose.  "
    "[default: 0.05]",
)
@click.option(
    "--strategy",
    type=click.Choice(["joint", "paper", "distill"]),
    help="For factors. joint: search all factors together, by coordinates. paper: the paper's hill "
    "climb. distill: the fine-tuned model teaches, and a few candidates around its proposal are "
    "evaluated.  [default: joint]",
)
@click.option(
    "--per-block",
    is_flag=True,
    help="For distill: factors for each block, written as gradients.",
)
@click.option(
    "--prompts",
    "prompts_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="For distill: the prompts that the model teaches by, one a line, or .jsonl. Without it, "
    "the prompts of the dev tasks.",
)
@click.option(
    "--max-evaluations",
    type=click.IntRange(min=1),
    default=60,
    show_default=True,
    help="Number of candidates for each domain, or for the merge.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Steps in a row without gain after which the paper's climb ends.",
)
@click.option(
    "--range",
    "range_",
    type=(options.Finite(min=0), options.Finite(min=0)),
    help="The least and the largest value.  [default: 0.2 3 for factors, 0.1 1 for those of random "
    "partitions, 0 1.5 for weights, 0.2 4 for merge-factors]",
)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of the order in which items are used.",
)
@click.option("--tune-dense", is_flag=True, help="For factors: tune amplify_dense too.")
@options.placement_options
@options.scoring_options
@click.option(
    "--score-command",
    help="Score with a shell command in place of lm-eval. {model} in it stands for a merged "
    'folder; it prints JSON, as in {"task": 0.5}.',
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Number of processes that try candidates, each with its own model (and GPU, with cuda).",
)
@click.option(
    "--ray-address",
    help="Address of a Ray cluster for the workers, in place of this machine.",
)
@options.page_option
def search(
    recipe: Path,
    tasks_file: Path,
    output: Path,
    tune: str,
    shared: bool,
    by: str,
    guard_loss: float | None,
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
    html: bool,
    loading: LoadingOptions,
) -> None:
    """Tune the amplification factors or the weights of RECIPE by evaluation.

    \b
        mergekit-dppa search recipe.yml --tasks tasks.yml --output tuned.yml
        mergekit-dppa search recipe.yml --tasks tasks.yml --output tuned.yml --tune weights

    After an interruption, the same command continues where it stopped.
    """  # noqa: D301  # click wants a backspace before lines that it must not wrap
    from dppa_mergekit.recipes.recipe import Recipe
    from dppa_mergekit.search.factor_search import FactorSearch
    from dppa_mergekit.search.merge_factor_search import MergeFactorSearch
    from dppa_mergekit.search.merge_search import MergeSearch
    from dppa_mergekit.search.weight_search import WeightSearch
    from dppa_mergekit.search.workers import Cluster

    options.check_paged(html, output)
    options.check_apart(output, [recipe, tasks_file, prompts_file])
    _refuse_idle_options(
        tune, shared, by, guard_loss, tune_dense, per_block, prompts_file, strategy
    )
    _check_scoring(score_command, workers, ray_address)
    options.check_first(recipe, loading)
    read = Recipe.read(recipe)
    tasks = options.tasks_of(tasks_file, batch_size, limit)
    chosen = _search_options(
        read.method, tune, range_, strategy, max_evaluations, patience, seed, per_block
    )
    placed = options.placement(device, dtype, loading)
    cluster = None if workers is None else Cluster(workers, ray_address)
    loss = MergeSearch.guard_loss if guard_loss is None else guard_loss
    with options.placing(read.models(), output.parent, placed) as placement:
        given = (read, tasks, output, chosen, placement, score_command, cluster)
        run: RecipeSearch
        if tune == "factors":
            run = FactorSearch(*given, tune_dense, _texts(prompts_file))
        elif tune == "weights":
            run = WeightSearch(*given, by == "worst", loss, shared)
        else:
            run = MergeFactorSearch(*given, by == "worst", loss)
        verdict = _report(_results(run), read.method)
    found = "weights" if tune == "weights" else "factors"
    click.echo(f"{output}: the recipe with these {found}")
    if html:
        title = f"Search of {found} for {recipe.name}"
        curves = {output.with_suffix(".png").name: CURVES}
        options.write_page(output, title, verdict, curves, [recipe, tasks_file])


def _refuse_idle_options(
    tune: str,
    shared: bool,
    by: str,
    guard_loss: float | None,
    tune_dense: bool,
    per_block: bool,
    prompts_file: Path | None,
    strategy: str | None,
) -> None:
    """Refuse options that do nothing beside the others.

    Raises:
        ParameterError: There is one.
    """
    if tune != "weights":
        options.refuse_idle({"--shared": shared}, "--tune weights")
    if tune == "factors":
        of_merges = {"--by worst": by == "worst", "--guard-loss": guard_loss is not None}
        options.refuse_idle(of_merges, "--tune weights or merge-factors")
    else:
        of_factors = {"--tune-dense": tune_dense, "--per-block": per_block}
        options.refuse_idle(of_factors, "--tune factors")
    if per_block:
        options.refuse_idle({"--tune-dense": tune_dense}, "factors that are not --per-block")
    if strategy != "distill":
        options.refuse_idle({"--prompts": prompts_file}, "--strategy distill")


def _check_scoring(score_command: str | None, workers: int | None, ray_address: str | None) -> None:
    """Refuse a score command that gets no folder, and the address of a cluster without workers.

    Raises:
        ParameterError: There is one.
    """
    from dppa_mergekit.errors import ParameterError

    if score_command is not None and "{model}" not in score_command:
        raise ParameterError(
            f"--score-command {score_command!r} names no {{model}}, the folder that it scores."
        )
    if ray_address is not None and workers is None:
        raise ParameterError("--ray-address says where workers run; it needs --workers.")


def _search_options(
    method: str,
    tune: str,
    range_: tuple[float, float] | None,
    strategy: str | None,
    max_evaluations: int,
    patience: int,
    seed: int,
    per_block: bool,
) -> Options:
    """Return how to search: what the user gives, and the defaults of what is tuned.

    Raises:
        ParameterError: The range is empty, or a range of factors lacks 1.
    """
    from dataclasses import replace

    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.search.factor_search import default_options
    from dppa_mergekit.search.merge_factor_search import MERGE_FACTOR_OPTIONS
    from dppa_mergekit.search.weight_search import WEIGHT_OPTIONS

    of_merges = {"weights": WEIGHT_OPTIONS, "merge-factors": MERGE_FACTOR_OPTIONS}
    defaults = default_options(method) if tune == "factors" else of_merges[tune]
    low, high = (defaults.low, defaults.high) if range_ is None else range_
    if tune != "weights" and not low <= 1 <= high:
        raise ParameterError(f"--range is {low:g} {high:g}; allowed is a range with 1 in it.")
    if tune == "weights" and not low < high:
        raise ParameterError(f"--range is {low:g} {high:g}; allowed is a range from less to more.")
    return replace(
        defaults,
        strategy=strategy or defaults.strategy,
        max_evaluations=max_evaluations,
        patience=patience,
        low=low,
        high=high,
        seed=seed,
        per_block=per_block,
    )


def _texts(prompts_file: Path | None) -> list[str] | None:
    """Return the texts of a file of prompts."""
    from dppa_mergekit.prompts import read_prompts

    if prompts_file is None:
        return None
    return [prompt.text for prompt in read_prompts(prompts_file)]


def _results(search: RecipeSearch) -> list[SearchResult]:
    """Search; after Ctrl-C, end the process."""
    options.quiet_transformers()
    try:
        return search.run()
    except KeyboardInterrupt:
        options.interrupted(search.output)


def _report(results: Sequence[SearchResult], method: str) -> list[str]:
    """Print the results; return the sentences that a page repeats."""
    from dppa_mergekit.checks.mergekit_schema import RANDOM_METHODS
    from dppa_mergekit.live.temporary_merge import RANDOM_SEED
    from dppa_mergekit.search.candidates import AS_IT_IS
    from dppa_mergekit.search.summary import format_setting

    verdict = []
    for result in results:
        found = ", ".join(
            f"{name} {format_setting(setting)}" for name, setting in result.factors.items()
        )
        found = found or AS_IT_IS
        verdict.append(
            f"{result.domain}: {found}; dev Domain-Ratio {result.before} -> {result.after} "
            f"({result.evaluations} candidates, {result.seconds:.0f} s)"
        )
        click.echo(verdict[-1])
        for name, (before, after) in result.parts.items():
            click.echo(f"  {name}: {before} -> {after}")
    if method in RANDOM_METHODS:
        verdict.append(
            f"{method} draws at random: mergekit-yaml --random-seed {RANDOM_SEED} makes the draw "
            f"that was tuned"
        )
        click.echo(verdict[-1])
    return verdict
