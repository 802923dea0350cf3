"""The command `mergekit-dppa adamerge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dppa_mergekit.cli import options

if TYPE_CHECKING:
    from dppa_mergekit.adamerging.states import LearningResult
    from dppa_mergekit.checkpoints.loading_options import LoadingOptions


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--prompts",
    "prompts_files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The prompts of one domain: a text file with a prompt on every line, or a .jsonl file. "
    "The file is named after the domain. Repeat the option for every domain. Without it, the "
    "prompts of the dev tasks are used.",
)
@click.option(
    "--tasks",
    "tasks_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A tasks file. It names the model of every domain, and its dev tasks choose the best "
    "state.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of the recipe with what was learned.",
)
@click.option(
    "--objective",
    type=click.Choice(["distill", "hidden", "entropy", "loss"]),
    default="distill",
    show_default=True,
    help="The loss to descend. distill: the divergence from the answers of the domain's own model. "
    "hidden: that, and the distance from its hidden states; it keeps all models in memory. "
    "entropy: the entropy of the next token (the paper's). loss: the cross-entropy of given "
    "completions.",
)
@click.option(
    "--granularity",
    type=click.Choice(["model", "block", "linear", "partition"]),
    default="linear",
    show_default=True,
    help="What has numbers of its own in every model: the model, each block, each linear, or each "
    "partition of a linear (its factors, beside the weights of linears). Experts that one tensor "
    "stacks share theirs. Where linears have their own, all other tensors of a model share one "
    "weight.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="The number of steps of Adam.",
)
@click.option(
    "--lr",
    type=options.Finite(min=0, min_open=True),
    default=1e-2,
    show_default=True,
    help="Adam's learning rate.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="The number of prompts of every domain in a step.",
)
@click.option(
    "--anchor",
    type=options.Finite(min=0),
    default=1.0,
    show_default=True,
    help="How strongly the numbers are pulled to where they started.",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="The number of steps from one state that is kept, and scored on the dev tasks, to the "
    "next.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Learning ends after so many dev scores in a row without improvement.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="The seed of the order of the prompts."
)
@options.page_option
@options.placement_options
@click.option(
    "--gradient-checkpointing",
    is_flag=True,
    help="Use less memory for activations, and more time.",
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
    loading: LoadingOptions,
) -> None:
    """Learn the weights of RECIPE's models from prompts (AdaMerging).

    \b
        mergekit-dppa adamerge recipe.yml --output learned.yml \\
            --prompts math.txt --prompts law.txt

    Of dppa_regmean and dare_regmean, it learns factors in place of weights. A run that was
    interrupted goes on when the same command is given again.
    """  # noqa: D301  # click wants a backspace before lines that it must not wrap
    from dppa_mergekit.adamerging.descent import Descent
    from dppa_mergekit.adamerging.recipe_learning import AdaMerge
    from dppa_mergekit.recipes.recipe import Recipe
    from dppa_mergekit.scoring.tasks import TasksFile

    options.check_paged(html, output)
    options.check_apart(output, [recipe, tasks_file, *prompts_files])
    options.check_first(recipe, loading)
    read = Recipe.read(recipe)
    request = (
        read,
        options.read_prompts_files(prompts_files),
        None if tasks_file is None else TasksFile.read(tasks_file),
        output,
        objective,
        Descent(
            steps,
            lr,
            batch_size,
            anchor,
            granularity,
            every,
            patience,
            gradient_checkpointing,
            seed,
        ),
    )
    placed = options.placement(device, dtype, loading)
    options.quiet_transformers()
    try:
        with options.placing(read.models(), output.parent, placed) as placement:
            result = AdaMerge(*request, placement).run()
    except KeyboardInterrupt:
        options.interrupted(output)
    lines = _describe(result)
    for line in lines:
        click.echo(line)
    click.echo(f"{output}: the recipe with these {result.words}")
    if html:
        given = [recipe, *prompts_files, *([] if tasks_file is None else [tasks_file])]
        pictures = {
            output.with_suffix(
                ".png"
            ).name: f"{result.words.capitalize()} (dotted: at the start), and losses and dev "
            "scores by step."
        }
        title = f"{result.words.capitalize()} of {recipe.name} by AdaMerging"
        options.write_page(output, title, lines, pictures, given)


def _describe(result: LearningResult) -> list[str]:
    """What was learned and the dev scores, before and after, as lines of text."""
    first, best = result.states[0], result.best
    lines = []
    for row, before, values in zip(result.rows, first.coefficients, best.settled, strict=True):
        learned = f"{sum(values) / len(values):.3f}"
        spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
        start = f"{sum(before) / len(before):.3f}"
        lines.append(f"{row.model}: {row.name} {start} -> {learned}{spread}")
    if first.evaluation is not None and best.evaluation is not None:
        lines.append(
            f"dev Domain-Ratio {first.evaluation.estimate} -> {best.evaluation.estimate} "
            f"(after {best.step} of {result.states[-1].step} steps)"
        )
        for name, part in best.evaluation.parts.items():
            lines.append(f"  {name}: {first.evaluation.parts[name]} -> {part}")
    return lines
