"""The driver of `mergekit-dppa check`: all checks of a recipe, or of a merged folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dppa_mergekit import method_table
from dppa_mergekit.checkpoints.loading_options import DEFAULT_LOADING, LoadingOptions
from dppa_mergekit.checks.findings import Finding, error, note
from dppa_mergekit.checks.merged_folder import check_merged_folder, read_recipe
from dppa_mergekit.checks.missing_tensors import can_plan, check_tensors, find_needed_options
from dppa_mergekit.checks.model_compatibility import check_names
from dppa_mergekit.checks.output_folder import check_output, estimate_needs, output_size
from dppa_mergekit.checks.recipe_models import (
    InspectedModels,
    compare_models,
    find_input_lists,
    inspect_models,
)
from dppa_mergekit.checks.recipe_text import check_epsilon, check_kept, check_keys, check_required
from dppa_mergekit.checks.recipe_yaml import parse
from dppa_mergekit.checks.slices import check_gradients, check_layer_order, check_layer_ranges
from dppa_mergekit.checks.tokenizer_choice import check_choice
from dppa_mergekit.checks.tokenizer_sources import check_sources
from dppa_mergekit.errors import RecipeError
from dppa_mergekit.recipes.stages import stages_of
from dppa_mergekit.report.phrases import join_names


def check(path: str | os.PathLike[str]) -> list[Finding]:
    """Return what is wrong with a recipe before a merge, or with a folder after it.

    A recipe is checked with its models, by their headers; every weight of a folder is read once.

    Args:
        path: The file of a recipe of any of mergekit's methods, or a folder that a merge wrote.
            Relative paths in the recipe start from the current folder, as in mergekit.

    Returns:
        Findings of severity "error", "warning" or "note"; without an error, the merge can begin or
        is sound.

    >>> from tempfile import NamedTemporaryFile
    >>> with NamedTemporaryFile("w", suffix=".yml") as recipe:
    ...     _ = recipe.write("merge_method: dpaa")
    ...     recipe.flush()
    ...     print(check(recipe.name)[0])
    error: merge_method: unknown method dpaa; did you mean dppa?
    """
    path = Path(path)
    found = check_folder(path, None) if path.is_dir() else check_recipe(path, None, sample=False)
    return list(found)


def check_recipe(
    path: Path,
    out: Path | None,
    sample: bool,
    loading: LoadingOptions = DEFAULT_LOADING,
    weighted: bool = True,
    quick: bool = False,
    begin_plan: Callable[[], object] = lambda: None,
) -> Iterator[Finding]:
    """Yield what is wrong with a recipe, its models, and the folder that it is to write.

    Where nothing else is wrong, mergekit is asked for its plan of the merge, which takes seconds.

    Args:
        path: The recipe's file. Relative paths in it start from the current folder, as in mergekit.
        out: The output folder; None where it is not known yet.
        sample: Whether slices of the weights are read.
        loading: How the merge will load models.
        weighted: Whether fine-tuned models without a weight are errors.
        quick: Whether mergekit is not asked.
        begin_plan: Called before mergekit is asked.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        yield error(str(path), f"it cannot be read ({problem}).")
        return
    documents, findings = parse(text)
    request = _Request(path.parent, out, sample, loading, weighted, quick, begin_plan)
    if len(documents) == 1:
        (stage,) = stages_of(documents)
        yield from _check_content(stage.content, findings, (), request)
        return
    yield from findings
    try:
        stages = stages_of(documents)
    except RecipeError as problem:
        yield error("recipe", problem.message)
        return
    for stage in stages:
        # The output is that of the final merge.
        of_stage = request if stage.name is None else replace(request, out=None)
        for finding in _check_content(stage.content, [], stage.uses, of_stage):
            yield replace(finding, subject=f"{stage.title}: {finding.subject}")


@dataclass(frozen=True)
class _Request:
    """How a recipe is checked: the arguments of `check_recipe`, and the folder of the recipe."""

    beside: Path
    out: Path | None
    sample: bool
    loading: LoadingOptions
    weighted: bool
    quick: bool
    begin_plan: Callable[[], object]


def _check_content(
    content: dict[str, object],
    findings: list[Finding],
    outputs: Sequence[str],
    request: _Request,
) -> Iterator[Finding]:
    """Yield what is wrong with one recipe.

    Args:
        content: The content of the recipe.
        findings: What is wrong with its text.
        outputs: The names of its models that are outputs of other stages, and not there yet.
        request: How it is checked.
    """
    findings += _check_text(content, request.weighted)
    inspected, of_models = inspect_models(
        content, outputs, request.beside, request.loading.lora_merge_cache
    )
    findings += of_models
    findings += check_sources(
        content, inspected.named, inspected.models, inspected.base, outputs, request.beside
    )
    findings += _check_layers(content, inspected)
    findings += compare_models(content, inspected, request.sample, request.loading)
    known = inspected.base or inspected.first
    size = None if known is None else output_size(content, known)
    if known is not None and size is not None:
        findings += estimate_needs(size, known, request.out)
    if request.out is not None:
        findings += check_output(request.out, inspected.named, size)
    needed = find_needed_options(content, request.loading)
    if needed:
        findings.append(note("recipe", f"mergekit-yaml needs {join_names(needed)} for it."))
    yield from findings
    is_sound = not any(finding.severity == "error" for finding in findings)
    ask = is_sound and not (request.quick or outputs) and can_plan(content, request.loading)
    if is_sound and not (ask or request.quick or outputs or needed):
        yield note("recipe", "mergekit is not asked for its plan: not all models are here.")
    if ask:
        request.begin_plan()
    if known is not None:
        loading = request.loading if ask else None
        yield from check_tensors(content, inspected.comparable, known, loading)


def check_folder(
    folder: Path,
    verify: Literal["sample", "all"] | None,
    loading: LoadingOptions = DEFAULT_LOADING,
    quick: bool = False,
    begin_plan: Callable[[], object] = lambda: None,
) -> Iterator[Finding]:
    """Yield what is wrong with a merged folder.

    Args:
        folder: The folder that a merge wrote.
        verify: Which tensors are computed again; None for one of each shard, where nothing else is
            wrong, the method is of this package, and the recipe's models are here. Merges by other
            methods are then only planned again.
        loading: How the merge loaded models.
        quick: Whether no tensor is computed again if `verify` is None.
        begin_plan: Called before tensors are computed.
    """
    is_sound = True
    for finding in check_merged_folder(folder, loading):
        is_sound &= finding.severity != "error"
        yield finding
    content = read_recipe(folder)
    if verify is None and (quick or not is_sound or content is None):
        return
    content = content or {}
    needed = find_needed_options(content, loading)
    if needed:
        yield note(str(folder), f"it cannot be verified without {join_names(needed)}.")
        return
    if verify is None and not can_plan(content, loading):
        return
    from dppa_mergekit.checks.recompute import check_again, verify_tensors  # imports torch

    begin_plan()
    # mergekit's own methods give other bytes with another number of threads.
    if verify is None and content.get("merge_method") not in method_table.names():
        yield from check_again(folder, loading)
        return
    yield from verify_tensors(folder, verify or "shards", loading)


def _check_text(content: Mapping[str, object], weighted: bool) -> Iterator[Finding]:
    """Yield what is wrong with a recipe by its text alone."""
    yield from check_keys(content)
    yield from check_choice(content)
    yield from check_required(content, weighted)
    # A mistake in one slice may be in every other.
    yield from dict.fromkeys(check_epsilon(content))
    yield from dict.fromkeys(check_kept(content))
    yield from dict.fromkeys(
        finding
        for models, base in find_input_lists(content)
        for finding in check_names(models, base)
    )
    if (method := str(content.get("merge_method"))) in method_table.names():
        yield from check_layer_order(content, method)


def _check_layers(content: Mapping[str, object], inspected: InspectedModels) -> Iterator[Finding]:
    """Yield layers that models do not have, and gradients over more layers than they have."""
    layers = {
        name: number
        for name, model in inspected.models.items()
        if isinstance(number := model.config.get("num_hidden_layers"), int)
    }
    yield from check_layer_ranges(content, layers)
    if layers:
        yield from check_gradients(content, max(layers.values()))
