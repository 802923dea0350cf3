"""The command `mergekit-dppa activations`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dppa_mergekit.cli import options

if TYPE_CHECKING:
    from dppa_mergekit.checkpoints.loading_options import LoadingOptions
    from dppa_mergekit.observation.recipe_activations import Observed


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--prompts",
    "prompts_files",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The prompts of one domain: a text file with a prompt on every line, or a .jsonl file, "
    "whose completions are taken as answers. The file is named after the domain's model. Repeat "
    "the option for every model.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file of the recipe with activations filled in. The activations are written to a "
    "folder beside it.",
)
@click.option(
    "--rank",
    type=click.IntRange(min=1),
    default=96,
    show_default=True,
    help="The largest rank of the moments of a linear's inputs.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="The largest number of tokens of a model's own answer; 0 observes prompts alone.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="The number of prompts that are answered at once.",
)
@click.option(
    "--apply-chat-template", is_flag=True, help="Put every prompt into the model's chat template."
)
@click.option("--system-instruction", help="The system message of the chat.")
@options.page_option
@options.placement_options
def activations(
    recipe: Path,
    prompts_files: tuple[Path, ...],
    output: Path,
    rank: int,
    max_new_tokens: int,
    batch_size: int,
    apply_chat_template: bool,
    system_instruction: str | None,
    html: bool,
    device: str,
    dtype: str,
    loading: LoadingOptions,
) -> None:
    """Observe what enters the linears of RECIPE's models, so that a merge can combine by inputs.

    \b
        mergekit-dppa activations recipe.yml --output tuned.yml \\
            --prompts math.txt --prompts law.txt
        mergekit-yaml tuned.yml merged/

    A run that was interrupted goes on when the same command is given again.
    """  # noqa: D301  # click wants a backspace before lines that it must not wrap
    from dppa_mergekit.observation.observe import Observing
    from dppa_mergekit.observation.recipe_activations import RecipeActivations
    from dppa_mergekit.observation.texts import Reading
    from dppa_mergekit.recipes.recipe import Recipe

    options.check_paged(html, output)
    options.check_apart(output, [recipe, *prompts_files])
    if not apply_chat_template:
        options.refuse_idle({"--system-instruction": system_instruction}, "--apply-chat-template")
    options.check_first(recipe, loading)
    read = Recipe.read(recipe)
    prompts = options.read_prompts_files(prompts_files)
    reading = Reading(max_new_tokens, batch_size, apply_chat_template, system_instruction)
    placed = options.placement(device, dtype, loading)
    options.quiet_transformers()
    try:
        with options.placing(read.models(), output.parent, placed) as placement:
            observing = Observing(rank, reading)
            found = RecipeActivations(read, prompts, output, observing, placement).run()
    except KeyboardInterrupt:
        options.interrupted(output)
    lines = _describe(found)
    for line in lines:
        click.echo(line)
    click.echo(f"{output}: the recipe with these activations")
    if html:
        pictures = {
            output.with_suffix(".png").name: "Angles between the leading inputs of every two "
            "models, block by block, and the share of the trace that the rank holds."
        }
        title = f"Inputs of the models of {recipe.name}"
        options.write_page(output, title, lines, pictures, [recipe, *prompts_files])


def _describe(found: Observed) -> list[str]:
    """One line for every model, and one on all of them."""
    from dppa_mergekit.observation.overlap import mean_angle, mean_held
    from dppa_mergekit.report.phrases import count

    lines = [
        f"{model}: {count(file.observation.prompts, 'prompt')}, "
        f"{count(file.observation.tokens, 'token')}, "
        f"{Path(file.path).stat().st_size / 1e6:.1f} MB"
        for model, file in found.files.items()
    ]
    angle = mean_angle(found.inputs)
    overlap = "" if angle is None else f"; mean angle of two models' inputs {angle:.0f} degrees"
    lines.append(f"trace held by the rank: {100 * mean_held(found.inputs):.1f} %{overlap}")
    return lines
