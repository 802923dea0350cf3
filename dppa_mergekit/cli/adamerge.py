"""`mergekit-dppa adamerge`."""

from __future__ import annotations

from pathlib import Path

import click

from dppa_mergekit.cli import options


@click.command()
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
    type=options.Finite(min=0, min_open=True),
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
    type=options.Finite(min=0),
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
@options.paged
@options.placed
@click.option(
    "--gradient-checkpointing", is_flag=True, help="Less memory for activations, more time."
)
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
    html: bool,
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
    from dppa_mergekit.adamerging.descent import Descent
    from dppa_mergekit.adamerging.recipe_learning import AdaMerge
    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.prompts import read_prompts
    from dppa_mergekit.recipes import Recipe
    from dppa_mergekit.scoring.tasks import TasksFile

    options.check_paged(html, output)
    options.check_apart(output, [recipe, tasks_file, *prompts_files])
    options.check_first(recipe)
    read = Recipe.read(recipe)
    tasks = None if tasks_file is None else TasksFile.read(tasks_file)
    prompts = {path.stem: read_prompts(path) for path in prompts_files}
    if len(prompts) < len(prompts_files):
        raise ParameterError("--prompts: two files have one name; allowed is one for each domain.")
    placement = options.placement(device, dtype, trust_remote_code)
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
    options.quiet_transformers()
    try:
        found = run.run()
    except KeyboardInterrupt:
        options.interrupted(output)
    first, best = found.states[0], found.best
    said = []
    for model, before, row in zip(found.weights, first.weights, best.settled, strict=True):
        learned = f"{sum(row) / len(row):.3f}"
        spread = f" ({min(row):.3f} to {max(row):.3f})" if len(row) > 1 else ""
        said.append(f"{model}: weight {sum(before) / len(before):.3f} -> {learned}{spread}")
    if first.evaluation is not None and best.evaluation is not None:
        said.append(
            f"dev Domain-Ratio {first.evaluation.estimate} -> {best.evaluation.estimate} "
            f"(after {best.step} of {found.states[-1].step} steps)"
        )
        for name, part in best.evaluation.parts.items():
            said.append(f"  {name}: {first.evaluation.parts[name]} -> {part}")
    for sentence in said:
        click.echo(sentence)
    click.echo(f"{output}: the recipe with these weights")
    if html:
        course = {
            output.with_suffix(".png").name: "Weights block by block (dotted: at the start), and "
            "losses and dev score over the steps."
        }
        given = [recipe, *prompts_files, *([] if tasks_file is None else [tasks_file])]
        title = f"Weights of {recipe.name} by AdaMerging"
        options.write_page(output, title, said, course, given)
