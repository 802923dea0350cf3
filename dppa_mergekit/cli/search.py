"""`mergekit-dppa search`."""

from __future__ import annotations

from pathlib import Path

import click

from dppa_mergekit.cli import options


@click.command()
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
    type=options.Finite(0, 1),
    help="With weights: the share of the base model's score that guard tasks may lose.  "
    "[default: 0.05]",
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
    type=(options.Finite(min=0), options.Finite(min=0)),
    help="The least and the largest value.  [default: 0.2 3; of dare_dpa 0.1 1; of weights 0 1.5]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Deals out the items.")
@click.option("--tune-dense", is_flag=True, help="Tune amplify_dense too.")
@options.placed
@options.scored
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
@options.paged
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
    trust_remote_code: bool,
) -> None:
    r"""Find the factors of RECIPE's models, each alone on the base, or its weights, by evaluation.

    \b
        mergekit-dppa search recipe.yml --tasks tasks.yml --output tuned.yml

    Killed, the same command goes on where it was.
    """
    from dataclasses import replace

    from dppa_mergekit.checks.mergekit_schema import RANDOM_METHODS
    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.live.temporary_merge import RANDOM_SEED
    from dppa_mergekit.prompts import read_prompts
    from dppa_mergekit.recipes import Recipe
    from dppa_mergekit.search.recipe_search import (
        WEIGHT_OPTIONS,
        Search,
        WholeMerge,
        default_options,
    )
    from dppa_mergekit.search.summary import written
    from dppa_mergekit.search.workers import Cluster

    options.check_paged(html, output)
    options.check_apart(output, [recipe, tasks_file, prompts_file])
    if tune == "factors":
        idle = {
            "--shared": shared,
            "--by worst": by == "worst",
            "--guard-loss": guard_loss is not None,
        }
        options.refuse_idle(idle, "--tune weights")
    else:
        idle = {"--tune-dense": tune_dense, "--per-block": per_block}
        options.refuse_idle(idle, "--tune factors")
    if per_block:
        options.refuse_idle({"--tune-dense": tune_dense}, "factors that are not --per-block")
    if strategy != "distill":
        options.refuse_idle({"--prompts": prompts_file}, "--strategy distill")
    if score_command is not None and "{model}" not in score_command:
        raise ParameterError(
            f"--score-command {score_command!r} names no {{model}}, the folder that it scores."
        )
    options.check_first(recipe)
    read = Recipe.read(recipe)
    tasks = options.tasks_of(tasks_file, batch_size, limit)
    merge = None
    if tune == "weights":
        loss = WholeMerge.guard_loss if guard_loss is None else guard_loss
        merge = WholeMerge(shared, by == "worst", loss)
    defaults = default_options(read.method) if merge is None else WEIGHT_OPTIONS
    chosen = replace(
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
        chosen = replace(chosen, low=low, high=high)
    placement = options.placement(device, dtype, trust_remote_code)
    prompts = None if prompts_file is None else [each.text for each in read_prompts(prompts_file)]
    options.quiet_transformers()
    if ray_address is not None and workers is None:
        raise ParameterError("--ray-address says where workers run; it needs --workers.")
    cluster = None if workers is None else Cluster(workers, ray_address)
    run = Search(
        read, tasks, output, chosen, placement, tune_dense, score_command, prompts, merge, cluster
    )
    try:
        found = run.run()
    except KeyboardInterrupt:
        options.interrupted(output)
    verdict = []
    for each in found:
        factors = ", ".join(f"{name} {written(factor)}" for name, factor in each.factors.items())
        verdict.append(
            f"{each.domain}: {factors}; dev Domain-Ratio {each.before} -> {each.after} "
            f"({each.evaluations} candidates, {each.seconds:.0f} s)"
        )
        click.echo(verdict[-1])
        for name, (before, after) in each.parts.items():
            click.echo(f"  {name}: {before} -> {after}")
    if read.method in RANDOM_METHODS:
        verdict.append(
            f"{read.method} draws at random: mergekit-yaml --random-seed {RANDOM_SEED} makes the "
            "draw that was tuned"
        )
        click.echo(verdict[-1])
    click.echo(f"{output}: the recipe with these {tune}")
    if html:
        curves = {
            output.with_suffix(".png").name: "Dev Domain-Ratio by factor, the other factors being "
            "those found (as in the paper's Fig. 2); dotted: what was found."
        }
        title = f"Search of {tune} for {recipe.name}"
        options.write_page(output, title, verdict, curves, [recipe, tasks_file])
