"""A model card: mergekit's own, completed with what is known of the merge.

What is added stands between two marks, so that it can be replaced and the rest stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dppa_mergekit.report.markdown_tables import table

BEGIN, END = "<!-- dppa-mergekit: begin -->", "<!-- dppa-mergekit: end -->"

TAGS = ("mergekit", "merge")

METHOD = """DPPA prunes the difference of every fine-tuned model to the base by magnitude, each
linear layer at a rate of its own (DP), and amplifies what is left, partition by partition (DPA). It
is described in "DPPA: Pruning Method for Large Language Model to Model Merging"
([arXiv 2403.02799](https://arxiv.org/abs/2403.02799)) and was applied by `dppa-mergekit`, a plugin
for mergekit.

```bibtex
@article{dppa2024,
  title = {DPPA: Pruning Method for Large Language Model to Model Merging},
  journal = {arXiv preprint arXiv:2403.02799},
  year = {2024}
}
```"""


@dataclass(frozen=True)
class Measured:
    """A score of the model.

    Attributes:
        task: By whose name.
        value: As the task's metric has it.
        error: Its standard error; None where it is not known.
        tuned_on: Whether factors or weights were chosen on the task.
    """

    task: str
    value: float
    error: float | None
    tuned_on: bool


@dataclass(frozen=True)
class Measurements:
    """What was measured of the model, together.

    Attributes:
        scores: Of its tasks.
        ratios: Domain -> Domain-Ratio in percent.
        limit: Of each task, at most so many items were used, the first; None for all.
    """

    scores: Sequence[Measured] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)
    limit: int | None = None


@dataclass(frozen=True)
class Facts:
    """What is known of a merge; without a path of this machine.

    Attributes:
        name: Of the model.
        is_dppa: Whether its method is one of this package.
        base_models: Hub names of base and fine-tuned models.
        parameters: Fine-tuned model -> its parameters.
        found: How factors or weights were found, in Markdown; empty if it is not known.
        picture: File name of a picture of the densities; None for none.
        measured: Of this model.
        recipe: YAML.
        versions: Package -> version.
        license: Of the model.
    """

    name: str
    is_dppa: bool
    base_models: Sequence[str]
    parameters: Mapping[str, Mapping[str, object]]
    found: str
    picture: str | None
    measured: Measurements
    recipe: str
    versions: Mapping[str, str]
    license: str | None


def complete_card(text: str, facts: Facts) -> str:
    """A card's text with the facts filled in, whether it was completed before or not."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    card = ModelCard(_without_marks(text), ignore_metadata_errors=True)
    data = card.data
    assert isinstance(data, ModelCardData)
    tags = [*(data.tags or []), *TAGS, *(["dppa"] if facts.is_dppa else [])]
    data.tags = list(dict.fromkeys(tags))
    data.library_name = data.library_name or "transformers"
    data.base_model = list(facts.base_models) or None
    data["base_model_relation"] = "merge" if facts.base_models else None
    data.license = facts.license
    limit = facts.measured.limit
    data.model_name = facts.name if facts.measured.scores else None
    data.eval_results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=each.task,
            dataset_name=each.task
            + " (tuned on)" * each.tuned_on
            + ("" if limit is None else f" (limit {limit})"),
            metric_type="score",
            metric_value=each.value,
        )
        for each in facts.measured.scores
    ] or None
    body = "\n\n".join(_section(facts))
    written = card.text.strip() or f"# {facts.name}"
    front = data.to_yaml(line_break="\n")
    return f"---\n{front}\n---\n\n{written}\n\n{BEGIN}\n\n{body}\n\n{END}\n"


def _without_marks(text: str) -> str:
    between = re.compile(f"\n*{re.escape(BEGIN)}.*?{re.escape(END)}\n*", re.DOTALL)
    return between.sub("\n", text)


def _section(facts: Facts) -> Iterator[str]:
    if facts.is_dppa:
        yield "## Method"
        yield METHOD
    names = list(dict.fromkeys(name for each in facts.parameters.values() for name in each))
    if names:
        yield "## Factors and weights"
        rows = [
            [_linked(model), *(_written(each[name]) if name in each else "" for name in names)]
            for model, each in facts.parameters.items()
        ]
        yield table(["model", *names], rows).strip()
    if facts.found:
        yield "## How they were found"
        yield facts.found.strip()
    if facts.picture is not None:
        yield "## What is kept"
        yield f"![Density kept of every linear, by block]({facts.picture})"
    measured = facts.measured
    if measured.scores:
        yield "## Scores"
        yield table(
            ["task", "score"],
            [[each.task + "\\*" * each.tuned_on, _score(each)] for each in measured.scores],
        ).strip()
        if any(each.tuned_on for each in measured.scores):
            yield "\\* Factors or weights were chosen on this task."
        if measured.limit is not None:
            yield f"Of each task, at most the first {measured.limit} items were used."
    if measured.ratios:
        yield "Domain-Ratios, in percent of the fine-tuned models:"
        rows = [[domain, f"{value:.1f}"] for domain, value in measured.ratios.items()]
        yield table(["domain", "ratio"], rows).strip()
    yield "## To reproduce"
    yield ", ".join(f"{name} {version}" for name, version in facts.versions.items()) + "."
    yield f"```yaml\n{facts.recipe.strip()}\n```"
    yield "```sh\nmergekit-yaml recipe.yml merged/\n```"


def _linked(model: str) -> str:
    """A name on the Hub, as a link there."""
    return f"[{model}](https://huggingface.co/{model})" if "/" in model else model


def _score(each: Measured) -> str:
    return f"{each.value:.3f}" + ("" if each.error is None else f" ± {each.error:.3f}")


def _written(value: object) -> str:
    """A parameter: a number, or the range of one that differs by block."""
    numbers = list(_numbers(value))
    if not numbers:
        return str(value)
    low, high = min(numbers), max(numbers)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(each.get("value") if isinstance(each, dict) else each)
