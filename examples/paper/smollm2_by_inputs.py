"""Sums of deltas, and combinations by inputs, of SmolLM2-135M-Instruct's fine-tunes.

    pip install -e '.[paper]'
    python examples/paper/smollm2_by_inputs.py FOLDER

Fine-tunes the model into a mathematician, a banker and a lawyer, shortly and at a high learning
rate, and merges three and two of them; and, more shortly still, into a banker and a lawyer that
rehearse texts of the base in every step. The weight of a sum is chosen on dev items; combinations
by inputs are taken as they are, with prompts drawn from the training's. AdaMerging learns weights,
or factors of combinations by inputs, from the same prompts. The tables on stdout show test
Domain-Ratios with their standard errors. States of trainings and finished rows are kept in FOLDER:
the same command resumes, and another process may measure another `--set` at the same time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the modules of the other examples

from contest import (
    Contest,
    Learning,
    Part,
    Result,
    Row,
    Weights,
    labelled,
    measure_missing,
    read_results,
)
from items import choose_draw, draw_prompts
from problems import TASKS
from rehearsal import Rehearsal, write_texts
from smollm2 import make_tasks, write_tasks
from smollm2_experts import REHEARSED, TEXTS_FILE, write_base
from training import Resumption, Training, save, train

from dppa_mergekit.adamerging.descent import Descent
from dppa_mergekit.adamerging.recipe_learning import AdaMerge
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.observation.observe import Observing
from dppa_mergekit.observation.recipe_activations import RecipeActivations
from dppa_mergekit.observation.texts import Reading
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.report.markdown_tables import table
from dppa_mergekit.scoring.lm_eval_harness import Harness
from dppa_mergekit.scoring.objectives import DomainObjective, MergeObjective
from dppa_mergekit.scoring.ratios import Estimate, Scores
from dppa_mergekit.scoring.tasks import TasksFile

COURSES = (
    Training(steps=100, batch_size=8, learning_rate=1e-3),
    Training(steps=150, batch_size=8, learning_rate=1e-3),
)
"""One after the other: the second begins anew, with a warm-up of its own. Models that rehearse are
fine-tuned by the first alone."""

SAVE_EVERY = 25
"""Steps between two saved states of a training."""

THREE = ("math", "finance", "law")
REHEARSING = "rehearsing"
SETS = {"three": THREE, "two": ("math", "finance"), REHEARSING: ("finance", "law")}
"""Name of a comparison -> the domains of the models that are merged in it."""

DENSITIES = (0.2, 0.1)
WEIGHTS = (0.3, 0.5, 0.7, 1.0)
ITEMS = {"dev": 16, "test": 64}
PROMPTS = 32
ANSWER_TOKENS = 64
ROWS = [
    Row("task_arithmetic"),
    *(
        Row(method, density)
        for density in DENSITIES
        for method in ("ties", "dare_linear", "dare_dpa", "dppa")
    ),
    *(
        Row(method, density, prompts)
        for density in DENSITIES
        for method in ("dare_regmean", "dppa_regmean")
        for prompts in (PROMPTS, None)
    ),
    *(Row("dppa_regmean", density, PROMPTS, "none") for density in DENSITIES),
    Row("dppa_regmean", 1.0, PROMPTS),
    *(
        Row(method, DENSITIES[0], prompts, learned=learning)
        for learning in (
            Learning(),
            Learning("linear"),
            Learning("partition"),
            Learning("block", "hidden"),
            Learning("partition", "hidden"),
        )
        for method, prompts in (("dppa_regmean", PROMPTS), ("dare_dpa", None), ("dppa", None))
    ),
]
START = 0.5
"""The weight of every model of a sum from which AdaMerging starts."""

FLOAT32 = Placement(dtype=torch.float32)
"""How the merge that learns is held: float32 is faster than bfloat16 on a CPU."""

DESCENT = Descent(steps=36, learning_rate=2e-2, batch_size=4, every=6)


def fine_tune(folder: Path, domain: str, rehearse: bool) -> None:
    """Write the fine-tuned model of a domain, and one after each course before, if missing.

    Args:
        folder: The folder of the base and of its fine-tuned models.
        domain: The domain.
        rehearse: Whether every step also rehearses texts of the base, in the first course alone.
    """
    number = THREE.index(domain)
    start = folder / "base"
    courses = COURSES[:1] if rehearse else COURSES
    for course, training in enumerate(courses, start=1):
        output = folder / (domain if course == len(courses) else f"{domain}_{course}")
        if not output.exists():
            # The backward pass of eager attention is faster for short texts on a CPU.
            model = AutoModelForCausalLM.from_pretrained(
                start, dtype=torch.float32, attn_implementation="eager"
            )
            tokenizer = AutoTokenizer.from_pretrained(start)
            seed = 10 * (course - 1) + number + 1
            title = f"fine-tuning {domain}, course {course}"
            rehearsal = None
            if rehearse:
                texts = folder / TEXTS_FILE
                rehearsal = Rehearsal(folder / "base", texts, REHEARSED, seed, "cpu")
            state = Resumption(output.with_suffix(".state"), SAVE_EVERY)
            draw = choose_draw(TASKS, domain)
            train(model, tokenizer, draw, training, seed, title, state, rehearsal)
            save(model, tokenizer, output)
            state.file.unlink(missing_ok=True)
        start = output


def make_prompts(domains: Sequence[str], number: int) -> dict[str, list[Prompt]]:
    """Return domain -> prompts of its training, without answers."""
    return {
        domain: [Prompt(text) for text in draw_prompts(TASKS, domain, number)] for domain in domains
    }


def observe(folder: Path, rank: int, domains: Sequence[str], number: int) -> Mapping[str, str]:
    """Observe every model on prompts of its training; return domain -> its file."""
    recipe = Recipe(
        {
            "merge_method": "dppa_regmean",
            "base_model": str(folder / "base"),
            "models": [{"model": str(folder / domain)} for domain in domains],
        }
    )
    prompts = make_prompts(domains, number)
    output = folder / f"observed_{number}.yml"
    observing = Observing(rank, Reading(ANSWER_TOKENS, batch_size=8))
    found = RecipeActivations(recipe, prompts, output, observing, AS_STORED).run()
    return {Path(model).name: file.path for model, file in found.files.items()}


def learn(
    folder: Path, domains: Sequence[str], observing: Callable[[int], Mapping[str, str]], row: Row
) -> Weights:
    """Return the merge whose weights or factors AdaMerging learned, and keep its recipe."""
    parameters: dict[str, dict[str, object]] = {
        domain: {"density": row.density, "weight": 1.0 if row.by_inputs else START}
        for domain in domains
    }
    if row.prompts is not None:
        for domain in domains:
            parameters[domain]["activations"] = observing(row.prompts)[domain]
    recipe = Recipe(
        {
            "merge_method": row.method,
            "base_model": str(folder / "base"),
            "models": [
                {"model": str(folder / domain), "parameters": parameters[domain]}
                for domain in domains
            ],
            "dtype": "bfloat16",
        }
    )
    learning = row.learned
    assert learning is not None
    own = learning.label.removeprefix("AdaMerging").replace(", ", "_")
    output = folder / f"learned_{row.method}_{len(domains)}{own}.yml"
    prompts = make_prompts(domains, PROMPTS)
    descent = replace(DESCENT, granularity=learning.granularity)
    run = AdaMerge(recipe, prompts, None, output, learning.objective, descent, FLOAT32)
    with merge_into_folder(run.run().recipe, folder) as merged:
        return load_weights(merged)


def load(path: Path) -> PreTrainedModel:
    """Load a model as it is stored."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    return model.eval()


def load_weights(path: Path) -> Weights:
    """Return the weights of a model; a tied head comes with the embeddings."""
    found: Weights = load(path).state_dict()
    return {key: tensor for key, tensor in found.items() if key != "lm_head.weight"}


class Judge:
    """Scores merges of some domains by Domain-Ratios."""

    def __init__(self, folder: Path, domains: Sequence[str]) -> None:
        """Score the models of some domains below a folder, each on its own tasks."""
        content = make_tasks({domain: str(folder / domain) for domain in domains}, "cpu")
        content["include_path"] = str(folder / "tasks")
        self._tasks = TasksFile.model_validate(content)
        self._folder = folder
        self._live = load(folder / "base").float()
        self._tokenizer = AutoTokenizer.from_pretrained(folder / "base")

    def __call__(self, weights: Weights, part: Part) -> tuple[float, Result]:
        """Return the mean Domain-Ratio in percent; with its error, and every domain, and guard."""
        scores, objective = self._score(weights, part), self._objective(part)
        estimates = {"mean": objective.estimate(scores), **objective.parts(scores)}
        kept: Result = {
            name: [estimate.value, estimate.error] for name, estimate in estimates.items()
        }
        for task in self._tasks.guard.of(part):
            kept[f"guard {task}"] = scores[task].value
        return objective.exact(scores), kept

    def _score(self, weights: Weights, part: Part, domain: str | None = None) -> Scores:
        self._live.load_state_dict(weights, strict=False)
        metrics = self._tasks.metrics(part)
        if domain is not None:
            metrics = self._tasks.domains[domain].of(part)
        items = {task: range(ITEMS[part]) for task in metrics}
        return self._harness(part).score(self._live, self._tokenizer, items)

    @cache  # noqa: B019  # there are as many judges as sets of domains
    def _harness(self, part: Part) -> Harness:
        return Harness(self._tasks, self._tasks.metrics(part))

    @cache  # noqa: B019
    def _objective(self, part: Part) -> MergeObjective:
        """The mean Domain-Ratio, relative to each domain's own model."""
        domains = {}
        for domain in self._tasks.domains:
            scores = self._score(load_weights(self._folder / domain), part, domain)
            domains[domain] = DomainObjective({task: of.value for task, of in scores.items()})
        return MergeObjective(domains)


def print_table(path: Path, domains: Sequence[str]) -> None:
    """Print the Domain-Ratios of one set of domains."""
    results, lines = read_results(path), []
    for label, keys in labelled(ROWS, (1.0, *DENSITIES)):
        for key in filter(results.__contains__, keys):
            found = results[key]
            cells = [str(Estimate(*found[name])) for name in ("mean", *domains)]  # type: ignore[misc]
            guard = [f"{100 * found[name]:.0f}" for name in found if name.startswith("guard")]  # type: ignore[operator]
            _, _, density = key.rpartition(" ")
            lines.append([label, density, str(found["chosen"]), *cells, *guard])
    head = ["merge", "density", "weight or lambda", "mean", *domains, "guard"]
    click.echo(f"{table(head, lines)}\n", nl=False)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--source", help="The pretrained model: a folder or a name on the Hub.")
@click.option(
    "--set",
    "chosen",
    multiple=True,
    type=click.Choice(list(SETS)),
    help="Models to merge and to put into tables; all sets if not given.",
)
@click.option(
    "--rank",
    type=click.IntRange(min=1),
    default=96,
    show_default=True,
    help="The rank of activations.",
)
def main(folder: Path, source: str | None, chosen: tuple[str, ...], rank: int) -> None:
    """Fine-tune SmolLM2 below FOLDER, merge it in several ways, and print the Domain-Ratios."""
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers' own
    torch.set_num_threads(1)  # sums, and so the trained weights, depend on the number
    for name in chosen or SETS:
        rehearse = name == REHEARSING
        models = (folder / REHEARSING if rehearse else folder).resolve()
        models.mkdir(parents=True, exist_ok=True)
        write_base(models, source)
        write_tasks(models / "tasks")
        if rehearse:
            write_texts(models / "base", models / TEXTS_FILE, "cpu")
        for domain in SETS[name] if rehearse else THREE:
            fine_tune(models, domain, rehearse)
        compare(models, name, rank)


def compare(folder: Path, name: str, rank: int) -> None:
    """Measure the merges of one comparison that are missing, and print its table."""
    domains = SETS[name]
    judge = Judge(folder, domains)
    weights = {model: load_weights(folder / model) for model in ("base", *domains)}
    observed = domains if name == REHEARSING else THREE
    observing = cache(partial(observe, folder, rank, observed))
    learning = partial(learn, folder, domains, observing)
    contest = Contest(weights, observing, judge, WEIGHTS, (1.0,), learning)
    kept = folder / f"by_inputs_{name}.json"
    measure_missing(contest, ROWS, kept, f"{name} domains")
    print_table(kept, domains)


if __name__ == "__main__":
    main()
