"""Tensors that models of a recipe lack or that a merge would lose, and filters that match none.

The names under which tensors are stored tell both, as long as the models agree in them. Where they
do not, mergekit may still find the tensors; it is asked for its plan of the merge, which takes
seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit import method_table
from dppa_mergekit.checkpoints.loading_options import LoadingOptions
from dppa_mergekit.checks.adapters import find_weights, merged_name
from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts, read_json
from dppa_mergekit.checks.findings import Finding, error, warning
from dppa_mergekit.errors import DppaError
from dppa_mergekit.merging.table_fit import EXPERT
from dppa_mergekit.recipes.inputs import models_of
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.recipes.references import Reference, named, spell
from dppa_mergekit.report.phrases import such_as
from dppa_mergekit.tensor_names import is_buffer, is_output_head

if TYPE_CHECKING:
    from dppa_mergekit.checks.mergekit_reads import PlannedMerge

TRUST = "--trust-remote-code"
"""mergekit's option without which the code of a model does not run."""


def find_missing(some: Collection[str], others: Collection[str], tied: bool) -> list[str]:
    """Return the tensors of one checkpoint that another lacks under these names, and should have.

    Args:
        some: The names of the tensors in the one.
        others: The names of the tensors in the other.
        tied: Whether the other may do without an output head.
    """
    return [
        name
        for name in some
        if name not in others and not is_buffer(name) and not (tied and is_output_head(name))
    ]


def report_missing(names: Collection[str]) -> str:
    """Return a sentence without its full stop about tensors of the base model that are missing."""
    return such_as(
        names,
        "tensor of the base model is missing",
        "tensors of the base model are missing",
    )


def can_plan(content: Mapping[str, object], loading: LoadingOptions) -> bool:
    """Return whether mergekit can plan a recipe without downloading a model or merging a LoRA."""
    models = _models_in(content)
    if not models or find_needed_options(content, loading):
        return False
    return all(_is_at_hand(model, loading) for model in models)


def find_needed_options(content: Mapping[str, object], loading: LoadingOptions) -> list[str]:
    """Return the options of mergekit without which a recipe's models cannot be loaded.

    Args:
        content: The content of the recipe.
        loading: The options that are given.
    """
    models = _models_in(content)
    needed = []
    if loading.lora_merge_cache is None and any(model.lora is not None for model in models):
        needed.append("--lora-merge-cache")
    if not loading.trust_remote_code and any(_has_code(model) for model in models):
        needed.append(TRUST)
    return needed


def _has_code(model: Reference) -> bool:
    """Return whether a model in a folder comes with code of its own, which transformers needs."""
    config = read_json(Path(model.model.path) / "config.json") or {}
    if "auto_map" not in config:
        return False
    from transformers import CONFIG_MAPPING  # takes a second

    return config.get("model_type") not in CONFIG_MAPPING


def _models_in(content: Mapping[str, object]) -> list[Reference]:
    return [named(spell(model)) for model in models_of(dict(content))]


def _is_at_hand(model: Reference, loading: LoadingOptions) -> bool:
    folder = Path(model.model.path)
    if model.lora is not None:
        if loading.lora_merge_cache is None:
            return False
        folder = Path(loading.lora_merge_cache) / merged_name(model)
    return bool(find_weights(folder))


@dataclass(frozen=True)
class Difference:
    """The stored names that only one of a model and its base has.

    Attributes:
        model: The model as the recipe spells it.
        missing: Names that only the base has.
        extra: Names that only the model has.
    """

    model: str
    missing: Sequence[str]
    extra: Sequence[str]

    @classmethod
    def between(cls, fine_tuned: CheckpointFacts, base: CheckpointFacts) -> Difference:
        """Compare a fine-tuned model with its base; equal where headers cannot be read."""
        if not fine_tuned.tensors or not base.tensors:
            return cls(fine_tuned.model, (), ())
        tied = any(bool(model.config.get("tie_word_embeddings")) for model in (fine_tuned, base))
        return cls(
            fine_tuned.model,
            find_missing(base.tensors, fine_tuned.tensors, tied),
            find_missing(fine_tuned.tensors, base.tensors, tied=True),
        )


def check_tensors(
    content: Mapping[str, object],
    fine_tuned: Sequence[CheckpointFacts],
    base: CheckpointFacts,
    loading: LoadingOptions | None,
) -> Iterator[Finding]:
    """Yield tensors that are missing or would be lost, and filters that match no tensor.

    Args:
        content: The content of the recipe.
        fine_tuned: The fine-tuned models, whose tensors should be those of the base.
        base: The base model.
        loading: How mergekit, which is asked for its plan, loads models; None if it is not asked,
            and stored names alone must tell.
    """
    compared = [Difference.between(model, base) for model in fine_tuned]
    differences = [difference for difference in compared if difference.missing or difference.extra]
    if loading is None:
        for difference in differences:
            yield from _judge_by_names(difference)
        lasting = [name for name in base.tensors if not EXPERT.fullmatch(name)]
        if lasting:
            yield from _report_unmatched(content, lasting)
        return
    from dppa_mergekit.merging.misfits import MisfitError  # imports mergekit

    try:
        planned = _plan(content, loading)
    except MisfitError as problem:
        for misfit in problem.misfits:
            yield error(misfit.subject, misfit.sentence)
        return
    except DppaError as problem:
        yield _report_failure(problem, [base.model, *(model.model for model in fine_tuned)])
        return
    for misfit in planned.losses:
        yield warning(misfit.subject, misfit.sentence)
    for difference in differences:
        yield from _judge_by_plan(difference, planned)
    yield from _report_unmatched(content, planned.filtered)


def _report_failure(problem: DppaError, models: Sequence[str]) -> Finding:
    """Return why mergekit has no plan: of the model that the message begins with, if it does."""
    for model in models:
        if problem.message.startswith(f"{model}: "):
            return error(model, problem.message.removeprefix(f"{model}: "))
    return error("recipe", problem.message)


def _plan(content: Mapping[str, object], loading: LoadingOptions) -> PlannedMerge:
    """Ask mergekit for its plan. Raises DppaError where it makes none."""
    from dppa_mergekit.checks.mergekit_reads import plan_merge

    recipe = Recipe(dict(content), "it")
    if content.get("merge_method") in method_table.names():
        # A search may still have to find the weights; which tensors are read does not depend on
        # them.
        recipe = recipe.with_default("weight", 1.0)
    return plan_merge(recipe, loading)


def _judge_by_names(difference: Difference) -> Iterator[Finding]:
    """Yield what stored names tell of a model that differs from its base in them."""
    for names, report in (
        (difference.missing, report_missing),
        (difference.extra, _report_extra),
    ):
        if names:
            yield warning(
                difference.model,
                f"{report(names)}; or the models differ only in names: the merge itself will show "
                f"whether mergekit knows them.",
            )


def _judge_by_plan(difference: Difference, planned: PlannedMerge) -> Iterator[Finding]:
    """Yield what mergekit's plan tells of a model that differs from its base in names.

    Tensors that are nowhere, or that nothing reads, have ended the plan already.
    """
    reads = planned.reads.get(difference.model)
    if reads is None:
        yield from _judge_by_names(difference)
        return
    # mergekit would take the embeddings for an output head that is not tied to them.
    for name in reads.absent:
        if name in difference.missing and is_output_head(name):
            yield error(difference.model, f"1 tensor that mergekit reads is missing: {name}.")
    left_out = [name for name in reads.left_out if name in difference.missing]
    if left_out:
        found = such_as(left_out, "optional tensor is missing", "optional tensors are missing")
        yield warning(difference.model, f"{found}: there, it takes no part in the merge.")


def _report_unmatched(content: Mapping[str, object], names: Collection[str]) -> Iterator[Finding]:
    for text in _find_unmatched(_find_filters(content), names):
        yield warning("recipe", f"the filter {text!r} is in no tensor's name.")


def _report_extra(names: Collection[str]) -> str:
    return such_as(
        names,
        "tensor is not in the base model and would be lost",
        "tensors are not in the base model and would be lost",
    )


def _find_unmatched(filters: Collection[str], names: Collection[str]) -> list[str]:
    return sorted(text for text in filters if not any(text in name for name in names))


def _find_filters(content: object) -> set[str]:
    """Return all filters of parameters, except the asterisk."""
    if isinstance(content, list):
        return set().union(*(_find_filters(part) for part in content))
    if not isinstance(content, dict):
        return set()
    filters = set().union(*(_find_filters(part) for part in content.values()))
    if "value" in content and isinstance(content.get("filter"), str):
        filters.add(content["filter"])
    return filters - {"*"}
