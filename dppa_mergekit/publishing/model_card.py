"""The model card of a merge: mergekit's own card, completed with method, recipe and scores.

The added text stands between two marks, so that a later run replaces it and keeps the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import yaml

from dppa_mergekit.merging.method import Method
from dppa_mergekit.moments.activations_file import Observation
from dppa_mergekit.parameters import ACTIVATIONS
from dppa_mergekit.recipes.inputs import numbers_in
from dppa_mergekit.recipes.yaml_text import YAML_ERRORS
from dppa_mergekit.report.markdown_tables import table, with_error

CARD = "README.md"
"""The file name of a card in the folder of a model."""

BEGIN, END = "<!-- dppa-mergekit: begin -->", "<!-- dppa-mergekit: end -->"

TAGS = ("mergekit", "merge")

UNTITLED = "# Untitled Model (1)"
"""The title of mergekit's card where the name of the output folder ends in a slash."""

METHOD = """DPPA prunes the difference between each fine-tuned model and the base model by
magnitude, at a rate of its own for each linear layer (DP), and amplifies the remaining parameters
partition by partition (DPA). The paper is "DPPA: Pruning Method for Large Language Model to Model
Merging" ([arXiv 2403.02799](https://arxiv.org/abs/2403.02799)).

```bibtex
@article{zhu2024dppa,
  title = {DPPA: Pruning Method for Large Language Model to Model Merging},
  author = {Zhu, Yaochen and Xia, Rui and Zhang, Jiajun},
  journal = {arXiv preprint arXiv:2403.02799},
  year = {2024}
}
```"""


@dataclass(frozen=True)
class CardScore:
    """A score of the model on one task.

    Attributes:
        task: The name of the task.
        metric: Its metric and filter; empty if they are not known.
        value: The value of the task's metric.
        error: The standard error; None if it is not known.
        tuned_on: Whether factors or weights were chosen on the task.
        is_own: Whether the task is one of the user's, and not of lm-eval's.
    """

    task: str
    metric: str
    value: float
    error: float | None
    tuned_on: bool
    is_own: bool


@dataclass(frozen=True)
class Measurements:
    """The results of one evaluation of the model.

    Attributes:
        scores: The scores, task by task.
        ratios: Domain -> Domain-Ratio in percent.
        limit: At most the first so many items of each task were used; None for all.
        setup: How the tasks were changed for all models: "5-shot", "chat template", ...
    """

    scores: Sequence[CardScore] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    limit: int | None = None
    setup: Sequence[str] = ()


@dataclass(frozen=True)
class Facts:
    """The facts about a merge that a card states; none of them contains a local path.

    Attributes:
        name: The name of the merged model.
        method: The merge method; None if it is not one of this package.
        base_models: The names on the Hub of the base model and the fine-tuned models.
        parameters: Fine-tuned model -> its parameters in the recipe.
        report: How factors or weights were found, in Markdown; empty if it is not known.
        plot: The file name of the plot of densities; None if there is none.
        measurements: The scores of this model.
        observed: Fine-tuned model -> how its inputs were observed; empty if they were not.
        recipe: The text of the recipe; it is added where mergekit's card does not have it.
        has_activations: Whether all activations that the recipe names are uploaded.
        versions: Package -> version.
        license: The license of the model; None if it is not known.
    """

    name: str
    method: Method | None
    base_models: Sequence[str]
    parameters: Mapping[str, Mapping[str, object]]
    report: str
    plot: str | None
    measurements: Measurements
    observed: Mapping[str, Observation]
    recipe: str
    has_activations: bool
    versions: Mapping[str, str]
    license: str | None


def complete_card(text: str, facts: Facts) -> str:
    """Return the text of a card with the facts added, in place of those of an earlier run."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    card = ModelCard(_without_marks(text), ignore_metadata_errors=True)
    data = card.data
    assert isinstance(data, ModelCardData)
    tags = [*(data.tags or []), *TAGS, *(["dppa"] if facts.method else [])]
    data.tags = list(dict.fromkeys(tags))
    data.library_name = data.library_name or "transformers"
    data.base_model = list(facts.base_models) or None
    data["base_model_relation"] = "merge" if facts.base_models else None
    data.license = facts.license
    limit = facts.measurements.limit
    data.model_name = facts.name if facts.measurements.scores else None
    data.eval_results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=score.task,
            dataset_name=score.task
            + " (tuned on)" * score.tuned_on
            + ("" if limit is None else f" (limit {limit})"),
            metric_type="score",
            metric_value=score.value,
        )
        for score in facts.measurements.scores
    ] or None
    written = card.text.strip().replace(UNTITLED, f"# {facts.name}") or f"# {facts.name}"
    body = "\n\n".join(_section(facts, _has_recipe(written, facts.recipe)))
    front = data.to_yaml(line_break="\n")
    return f"---\n{front}\n---\n\n{written}\n\n{BEGIN}\n\n{body}\n\n{END}\n"


def _without_marks(text: str) -> str:
    between = re.compile(f"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", re.DOTALL)
    return between.sub("\n", text)


def _has_recipe(text: str, recipe: str) -> bool:
    """Return whether a card shows a recipe already, as mergekit's does."""
    shown = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    wanted = yaml.safe_load(recipe)
    return any(_read_yaml(block) == wanted for block in shown)


def _read_yaml(text: str) -> object:
    """Return the content of a block of YAML; None if it is no document, or several."""
    try:
        return yaml.safe_load(text)
    except YAML_ERRORS:
        return None


def _section(facts: Facts, has_recipe: bool) -> Iterator[str]:
    """Yield the paragraphs that are added to a card, which may have the recipe already."""
    if facts.method:
        yield "## Method"
        yield (
            f"The merge method is `{facts.method.name}` ({facts.method.pretty_name}) of "
            f"`dppa-mergekit`, a plugin for mergekit."
        )
        yield METHOD
    parameters = facts.parameters
    named = dict.fromkeys(name for given in parameters.values() for name in given)
    names = [name for name in named if name != ACTIVATIONS.name]
    if names:
        yield "## Factors and weights"
        rows = [
            [_link(model), *(_format(given[name]) if name in given else "" for name in names)]
            for model, given in parameters.items()
        ]
        yield table(["model", *names], rows).strip()
    if facts.observed:
        yield "## Inputs that were observed"
        yield (
            "The deltas are combined by what enters each linear of the fine-tuned models: its "
            "second moments, on a few prompts of each model's domain."
        )
        head = ["model", "prompts", "own answers", "tokens", "rank"]
        rows = [
            [
                _link(model),
                *map(str, (seen.prompts, seen.answered, seen.tokens, seen.rank)),
            ]
            for model, seen in facts.observed.items()
        ]
        yield table(head, rows).strip()
    if facts.report:
        yield "## How they were found"
        yield facts.report.strip()
    if facts.plot is not None:
        yield "## Densities"
        yield f"![Density of every linear, by block]({facts.plot})"
    yield from _scores(facts.measurements)
    yield "## How to reproduce this"
    yield ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + "."
    if not has_recipe:
        yield f"```yaml\n{facts.recipe.strip()}\n```"
    if not facts.has_activations:
        yield (
            "The activations that the recipe names are not in this repository; "
            "`mergekit-dppa activations` observes them from prompts."
        )
    yield "```sh\nmergekit-yaml mergekit_config.yml merged/\n```"


def _scores(measurements: Measurements) -> Iterator[str]:
    """Yield the paragraphs about scores and Domain-Ratios."""
    scores = measurements.scores
    if scores:
        yield "## Scores"
        rows = [
            [score.task + "\\*" * score.tuned_on, with_error(score.value, score.error, 3)]
            for score in scores
        ]
        yield table(["task", "score"], rows).strip()
        if any(score.tuned_on for score in scores):
            yield "\\* Factors or weights were chosen on this task."
        if measurements.limit is not None:
            yield f"Of each task, at most the first {measurements.limit} items were used."
    if measurements.ratios:
        yield "Domain-Ratios, in percent of the fine-tuned models:"
        rows = [[domain, f"{ratio:.1f}"] for domain, ratio in measurements.ratios.items()]
        yield table(["domain", "ratio"], rows).strip()


def _link(model: str) -> str:
    """Return a name on the Hub as a link, and any other name as it is."""
    return f"[{model}](https://huggingface.co/{model})" if "/" in model else model


def _format(parameter: object) -> str:
    """Return a parameter as text: a number, or the range of one that differs between blocks."""
    numbers = numbers_in(parameter)
    if not numbers:
        return str(parameter)
    low, high = min(numbers), max(numbers)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
