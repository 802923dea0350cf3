"""`mergekit-dppa search`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from dppa_mergekit.cli import options, search_choices

if TYPE_CHECKING:
    from dppa_mergekit.checkpoints.loading_options import LoadingOptions
    from dppa_mergekit.scoring.engines import EngineName
    from dppa_mergekit.search.recipe_search import RecipeSearch
    from dppa_mergekit.search.results import SearchResult

Found = TypeVar("Found")

FOUND = {
    "factors": "factors",
    "weights": "weights",
    "merge-factors": "factors",
    "both": "weights and factors",
}
"""What is tuned -> what is found."""

ENTRANTS = "Dev Domain-Ratio of the best candidate of every entrant, with its standard error."
"""The caption of the plot of a contest."""

CURVES = (
    "Dev Domain-Ratio by each of the {}, with the others as found (as in the paper's Fig. 2). "
    "Dotted lines mark what was found."
)
"""The caption of the plot; what is found goes into it."""


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
    type=click.Choice(["factors", "weights", "merge-factors", "both"]),
    default="factors",
    show_default=True,
    help="factors: those of every model, alone on the base. weights: those of all models, in the "
    "whole merge. merge-factors: the factors of all models, in the whole merge. both: weights, and "
    "then merge-factors.",
)
@click.option(
    "--methods",
    help="A contest: tune the recipe's models under each of these methods, separated by commas, or "
    "all. The best recipe is written. For --tune weights, or both, which tunes factors where a "
    "method has them.",
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
    help="Number of candidates for each domain, or for the merge; in a contest, of all methods "
    "together, in equal shares.  [default: 60; in a contest, 20 for each method]",
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
    "partitions, 0 1.5 for weights, 0.2 4 for merge-factors; for both it is that of the weights]",
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
@options.engine_option
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
    methods: str | None,
    shared: bool,
    by: str,
    guard_loss: float | None,
    strategy: str | None,
    per_block: bool,
    prompts_file: Path | None,
    max_evaluations: int | None,
    patience: int,
    range_: tuple[float, float] | None,
    seed: int,
    tune_dense: bool,
    device: str,
    dtype: str,
    batch_size: int | None,
    limit: int | None,
    engine: EngineName,
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
        mergekit-dppa search recipe.yml --tasks tasks.yml --output tuned.yml --tune weights \\
            --methods task_arithmetic,dare_dpa,dppa,dppa_regmean

    After an interruption, the same command continues where it stopped.
    """  # noqa: D301  # click wants a backspace before lines that it must not wrap
    from dppa_mergekit.recipes.recipe import Recipe
    from dppa_mergekit.search.entrants import parse_methods
    from dppa_mergekit.search.workers import Cluster

    options.check_paged(html, output)
    options.check_apart(output, [recipe, tasks_file, prompts_file])
    search_choices.refuse_idle_options(
        tune, methods, shared, by, guard_loss, tune_dense, per_block, prompts_file, strategy
    )
    options.check_engine(engine, device, batch_size)
    search_choices.check_scoring(score_command, engine, workers, ray_address)
    entering = None if methods is None else parse_methods(methods)
    options.check_first(recipe, loading)
    read = Recipe.read(recipe)
    tasks = options.tasks_of(tasks_file, batch_size, limit)
    number = max_evaluations or (60 if entering is None else 20 * len(entering))
    chosen = search_choices.search_options(
        read.method, tune, range_, strategy, number, patience, seed, per_block
    )
    placed = options.placement(device, dtype, loading)
    cluster = None if workers is None else Cluster(workers, ray_address)
    options.quiet_transformers()
    with options.placing(read.models(), output.parent, placed) as placement:
        given = (read, tasks, output, chosen, placement, score_command, engine, cluster)
        if entering is not None:
            verdict = _hold_contest(given, entering, tune, by, guard_loss)
        else:
            texts = _texts(prompts_file)
            run = _make_search(given, tune, shared, by, guard_loss, tune_dense, texts)
            verdict = _report(_finish(output, run.run), read.method)
    found = "the best recipe" if entering is not None else f"the recipe with these {FOUND[tune]}"
    click.echo(f"{output}: {found}")
    if html:
        title = f"Search of {FOUND[tune]} for {recipe.name}"
        caption = CURVES.format(FOUND[tune]) if entering is None else ENTRANTS
        pictures = {output.with_suffix(".png").name: caption}
        options.write_page(output, title, verdict, pictures, [recipe, tasks_file])


def _make_search(
    given: search_choices.Given,
    tune: str,
    shared: bool,
    by: str,
    guard_loss: float | None,
    tune_dense: bool,
    texts: list[str] | None,
) -> RecipeSearch:
    """Return the search for what is to be tuned."""
    from dppa_mergekit.search.factor_search import FactorSearch
    from dppa_mergekit.search.merge_factor_search import MergeFactorSearch
    from dppa_mergekit.search.weight_factor_search import WeightFactorSearch
    from dppa_mergekit.search.weight_search import WeightSearch

    if tune == "factors":
        return FactorSearch(*given, tune_dense, texts)
    goal = (by == "worst", _loss(guard_loss))
    if tune == "weights":
        return WeightSearch(*given, *goal, shared)
    if tune == "both":
        return WeightFactorSearch(*given, *goal)
    return MergeFactorSearch(*given, *goal)


def _hold_contest(
    given: search_choices.Given,
    methods: Sequence[str],
    tune: str,
    by: str,
    guard_loss: float | None,
) -> list[str]:
    """Hold a contest, and print it; return the sentences that a page repeats."""
    from dppa_mergekit.checks.mergekit_schema import RANDOM_METHODS
    from dppa_mergekit.search.contest_report import describe_placed, separation
    from dppa_mergekit.search.method_contest import MethodContest

    contest = MethodContest(*given, methods, tune == "both", by == "worst", _loss(guard_loss))
    placed = _finish(contest.output, contest.run)
    for one in placed:
        click.echo(describe_placed(one))
    verdict = [separation(placed)]
    if placed[0].entrant.method in RANDOM_METHODS:
        verdict.append(_seed_of(placed[0].entrant.method))
    for sentence in verdict:
        click.echo(sentence)
    return verdict


def _loss(guard_loss: float | None) -> float:
    from dppa_mergekit.search.merge_search import MergeSearch

    return MergeSearch.guard_loss if guard_loss is None else guard_loss


def _texts(prompts_file: Path | None) -> list[str] | None:
    """Return the texts of a file of prompts."""
    from dppa_mergekit.prompts import read_prompts

    if prompts_file is None:
        return None
    return [prompt.text for prompt in read_prompts(prompts_file)]


def _finish(output: Path, run: Callable[[], Found]) -> Found:
    """Run a search; after Ctrl-C, end the process."""
    try:
        return run()
    except KeyboardInterrupt:
        options.interrupted(output)


def _report(results: Sequence[SearchResult], method: str) -> list[str]:
    """Print the results; return the sentences that a page repeats."""
    from dppa_mergekit.checks.mergekit_schema import RANDOM_METHODS
    from dppa_mergekit.report.phrases import count
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
            f"({count(result.evaluations, 'candidate')}, {result.seconds:.0f} s)"
        )
        click.echo(verdict[-1])
        for name, (before, after) in result.parts.items():
            click.echo(f"  {name}: {before} -> {after}")
    if method in RANDOM_METHODS:
        verdict.append(_seed_of(method))
        click.echo(verdict[-1])
    return verdict


def _seed_of(method: str) -> str:
    """Return a sentence about the seed with which a method makes what was tuned."""
    from dppa_mergekit.live.temporary_merge import RANDOM_SEED

    return (
        f"{method} draws at random: mergekit-yaml --random-seed {RANDOM_SEED} makes the draw that "
        f"was tuned"
    )
