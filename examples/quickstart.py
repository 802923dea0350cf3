"""Train a base model and three fine-tuned models, merge them in several ways, print the scores.

    python examples/quickstart.py

Everything happens on this machine, in a few minutes on two cores. The output folder then holds
ordinary checkpoints (base, math, finance, law), recipes, and the merges that `mergekit-yaml` made
of them. Weights and factors are chosen on the dev parts of the tasks; the table on stdout shows the
test parts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

import click
import torch
import yaml
from domains import DOMAINS, TASKS
from items import Item
from mergekit.merge_methods import merge_state_dicts
from scoring import GENERAL, Scorer, Scores, compute_domain_ratio
from tiny_llama import make_model, make_tokenizer
from tqdm import tqdm
from training import Training, save, train
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

BASE_TRAINING = Training(steps=1400, batch_size=64, learning_rate=2e-3)
# The learning rate is above that of the base's training, so that the deltas become a third as large
# as the base's own weights.
TUNING = Training(steps=300, batch_size=64, learning_rate=3e-3)

BASE_SHARES = {
    "addition": 8,
    "function": 3,
    "sentiment": 3,
    "repeat": 2,
}  # others have 1; hard tasks have more
TRUE_SHARE = 0.15  # share of the base's items with true answers; the others have light ones
GENERAL_REPLAY = 0.08  # share of the general task in fine-tuning
OTHERS_REPLAY = 0.25  # share of the other domains in fine-tuning, with the base's answers

DEV_ITEMS = 100  # items per task to choose by
WEIGHTS = [0.2, 0.3, 0.4, 0.6, 0.8, 1.0]  # candidates; all models of a merge share one
AMPLIFICATIONS = [1.0, 1.5, 2.0]  # candidates for a single model's 90 partition
OBSERVED = 25  # prompts of each domain on which its model is observed


@dataclass(frozen=True)
class Recipe:
    """A merge of fine-tuned models with the same parameters for each of them."""

    name: str
    method: str
    models: tuple[str, ...]
    parameters: dict[str, float]

    def with_parameter(self, name: str, value: float) -> Recipe:
        """Return the recipe with another value of one parameter."""
        return replace(self, parameters={**self.parameters, name: value})

    @property
    def label(self) -> str:
        """The name, and the parameters that were chosen."""
        chosen = {name: value for name, value in self.parameters.items() if name != "density"}
        values = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
        return f"{self.name}: {values}" if values else self.name

    def to_yaml(self) -> str:
        """Return the recipe as mergekit reads it, with paths relative to the output folder."""
        models = [
            {"model": f"./{name}", "parameters": dict(self.parameters)} for name in self.models
        ]
        recipe = {
            "merge_method": self.method,
            "base_model": "./base",
            "models": models,
            "dtype": "bfloat16",
        }
        return yaml.safe_dump(recipe, sort_keys=False)


def list_single_models(domain: str) -> list[Recipe]:
    """Return the recipes of one fine-tuned model, pruned by 90 %, at weight 1."""
    pruned = {"weight": 1.0, "density": 0.1}
    return [
        Recipe(f"{domain}_dare_90", "dare_linear", (domain,), pruned),
        Recipe(f"{domain}_dppa_90", "dppa", (domain,), {**pruned, "amplify_90": 1.0}),
    ]


def list_merges() -> list[Recipe]:
    """Return the merges of the three fine-tuned models, before their common weight is chosen."""
    models = tuple(DOMAINS)
    return [
        Recipe("merge_task_arithmetic", "task_arithmetic", models, {"weight": 1.0}),
        Recipe("merge_dare_90", "dare_linear", models, {"weight": 1.0, "density": 0.1}),
        Recipe("merge_dppa_90", "dppa", models, {"weight": 1.0, "density": 0.1}),
        Recipe("merge_dppa_80", "dppa", models, {"weight": 1.0, "density": 0.2}),
    ]


def merge_by_inputs() -> Recipe:
    """Return the merge of the three fine-tuned models by what enters their linears."""
    return Recipe("merge_dppa_regmean_80", "dppa_regmean", tuple(DOMAINS), {"density": 0.2})


def draw_for_base(random: Random) -> Item:
    """Draw an item of any task, with a light answer more often than not."""
    [task] = random.choices(TASKS, [BASE_SHARES.get(task.name, 1) for task in TASKS])
    return task.draw_for_training(random, light=random.random() > TRUE_SHARE)


def choose_own(domain: str) -> Callable[[Random], Item]:
    """Return a function that draws items of a domain alone."""
    own = [task for task in TASKS if task.domain == domain]
    return lambda random: random.choice(own).draw_for_training(random)


def choose_draw(domain: str) -> Callable[[Random], Item]:
    """Return a function that draws a domain's items, mixed with items of the base's training."""
    own = choose_own(domain)
    general = [task for task in TASKS if task.domain == GENERAL]
    others = [task for task in TASKS if task.domain not in (domain, GENERAL)]

    def draw(random: Random) -> Item:
        share = random.random()
        if share < GENERAL_REPLAY:
            return random.choice(general).draw_for_training(random)
        if share < GENERAL_REPLAY + OTHERS_REPLAY:
            light = random.random() > TRUE_SHARE
            return random.choice(others).draw_for_training(random, light)
        return own(random)

    return draw


def train_models(output: Path, seed: int, base: Training, tuning: Training) -> None:
    """Write the checkpoints base, math, finance and law to `output`."""
    train_base(output / "base", seed, base)
    for number, domain in enumerate(DOMAINS, start=1):
        draw = choose_draw(domain)
        fine_tune(output / "base", output / domain, draw, tuning, seed + number)


def train_base(output: Path, seed: int, training: Training) -> None:
    """Write a base model that knows the words and forms of all tasks."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train(model, tokenizer, draw_for_base, training, seed, "training base")
    save(model, tokenizer, output)


def fine_tune(
    base: Path, output: Path, draw: Callable[[Random], Item], training: Training, seed: int
) -> None:
    """Write a base model that is fine-tuned on items."""
    model = load(base, torch.float32)
    tokenizer = make_tokenizer()
    train(model, tokenizer, draw, training, seed, f"fine-tuning {output.name}")
    save(model, tokenizer, output)


def load(folder: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    """Load a checkpoint in some floating-point type."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    assert isinstance(model, LlamaForCausalLM)
    return model


class Chooser:
    """Tries recipes in memory and keeps those that score best on dev."""

    def __init__(self, output: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        self._scorer = Scorer.load("dev", limit=DEV_ITEMS)
        self._tokenizer = tokenizer
        self._weights = {
            name: load(output / name, torch.bfloat16).state_dict() for name in ["base", *DOMAINS]
        }
        self._model = load(output / "base", torch.float32)
        self._fine_tuned = {
            domain: self._score_weights(self._weights[domain]) for domain in DOMAINS
        }

    def choose(self, recipe: Recipe, parameter: str, values: list[float]) -> Recipe:
        """Return the recipe with the value whose lowest Domain-Ratio is highest."""
        candidates = [recipe.with_parameter(parameter, value) for value in values]
        progress = tqdm(candidates, desc=f"choosing {parameter} of {recipe.name}")
        return max(progress, key=self._rate)

    def _rate(self, recipe: Recipe) -> tuple[float, float]:
        """Return the lowest and the mean Domain-Ratio on dev over the recipe's domains."""
        models = {name: self._weights[name] for name in ["base", *recipe.models]}
        parameters = {
            name: dict.fromkeys(recipe.models, value) for name, value in recipe.parameters.items()
        }
        torch.manual_seed(0)
        merged = merge_state_dicts(models, recipe.method, parameters=parameters, base="base")
        scores = self._score_weights(merged)
        ratios = [
            compute_domain_ratio(scores, self._fine_tuned[domain], self._scorer.domains[domain])
            for domain in recipe.models
        ]
        return min(ratios), sum(ratios) / len(ratios)

    def _score_weights(self, weights: dict[str, torch.Tensor]) -> Scores:
        self._model.load_state_dict(weights)
        return self._scorer.score(self._model, self._tokenizer)


def choose_recipes(output: Path, tokenizer: PreTrainedTokenizerFast) -> list[Recipe]:
    """Return all recipes with their free parameter chosen on dev, in the order of the table."""
    chooser = Chooser(output, tokenizer)
    chosen = []
    for domain in DOMAINS:
        dare, dppa = list_single_models(domain)
        chosen += [dare, chooser.choose(dppa, "amplify_90", AMPLIFICATIONS)]
    return chosen + [chooser.choose(recipe, "weight", WEIGHTS) for recipe in list_merges()]


def merge(output: Path, recipe: Recipe) -> None:
    """Write a recipe to `output` and merge it there with mergekit's own command."""
    (output / f"{recipe.name}.yml").write_text(recipe.to_yaml(), encoding="utf-8")
    command = Path(sys.executable).with_name("mergekit-yaml")
    run(output, command, f"{recipe.name}.yml", recipe.name, "--random-seed", "0", "--quiet")


def write_prompts(output: Path, seed: int) -> None:
    """Write `OBSERVED` prompts of each domain to a file that is named after its model."""
    for name in DOMAINS:
        draw, random = choose_own(name), Random(seed)
        lines = [draw(random).prompt for _ in range(OBSERVED)]
        (output / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def observe(output: Path, recipe: Recipe) -> None:
    """Observe a recipe's models on the prompts of their domains, and merge by these inputs."""
    prompts = [part for name in recipe.models for part in ("--prompts", f"{name}.txt")]
    (output / "recipe.yml").write_text(recipe.to_yaml(), encoding="utf-8")
    command = Path(sys.executable).with_name("mergekit-dppa")
    observed = f"{recipe.name}.yml"
    run(output, command, "activations", "recipe.yml", "--output", observed, *prompts)
    run(output, command.with_name("mergekit-yaml"), observed, recipe.name, "--quiet")


def run(output: Path, command: Path, *arguments: str) -> None:
    """Run a command in the output folder."""
    finished = subprocess.run(
        [command, *arguments],
        cwd=output,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # random masks depend on the thread count
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        line = " ".join([command.name, *arguments])
        raise click.ClickException(f"{line} failed: {finished.stderr}")


def print_table(rows: dict[str, Scores], domains: dict[str, list[str]]) -> None:
    """Print each row's scores in percent, and its Domain-Ratios to the fine-tuned models."""
    tasks = [task for domain in [*DOMAINS, GENERAL] for task in domains[domain]]
    widths = [max(6, len(column)) for column in [*tasks, *DOMAINS]]
    first = max(map(len, rows))

    def format_line(name: str, cells: list[str]) -> str:
        padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
        return "  ".join([f"{name:{first}}", *padded[: len(tasks)], "|", *padded[len(tasks) :]])

    print("Scores on the test items and, right of the bar, Domain-Ratios; all in percent.")
    print(format_line("", [*tasks, *DOMAINS]))
    for name, scores in rows.items():
        values = [100 * scores[task] for task in tasks]
        values += [
            compute_domain_ratio(scores, rows[domain], domains[domain]) for domain in DOMAINS
        ]
        print(format_line(name, [f"{value:.1f}" for value in values]))


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("quickstart"),
    show_default=True,
    help="Folder for the models, recipes and merges.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the training.")
def main(output: Path, seed: int) -> None:
    """Train a tiny base and three fine-tuned models, merge them, and print what each scores."""
    if output.exists() and any(output.iterdir()):
        raise click.ClickException(f"{output} is not empty; name another folder with --output.")
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own bar per checkpoint
    torch.set_num_threads(1)  # sums, and so the trained weights, depend on the number
    train_models(output, seed, BASE_TRAINING, TUNING)
    write_prompts(output, seed)
    tokenizer = make_tokenizer()
    recipes = choose_recipes(output, tokenizer)
    with ThreadPoolExecutor(max_workers=2) as pool:
        merges = pool.map(partial(merge, output), recipes)
        list(tqdm(merges, total=len(recipes), desc="merging"))
    by_inputs = merge_by_inputs()
    observe(output, by_inputs)
    recipes.append(by_inputs)
    scorer = Scorer.load("test")
    folders = {name: name for name in ["base", *DOMAINS]}
    folders |= {recipe.label: recipe.name for recipe in recipes}
    rows = {
        label: scorer.score(output / folder, tokenizer)
        for label, folder in tqdm(folders.items(), desc="scoring")
    }
    print_table(rows, scorer.domains)


if __name__ == "__main__":
    main()
