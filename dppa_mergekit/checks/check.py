"""The driver of `mergekit-dppa check`: all checks of a recipe, or of a merged folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dppa_mergekit import method_table
from dppa_mergekit.checkpoints.loading_options import DEFAULT_LOADING, LoadingOptions
from dppa_mergekit.checks.activations import check_activations
from dppa_mergekit.checks.adapters import check_adapter
from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts
from dppa_mergekit.checks.checkpoint_files import check_architecture, check_dtypes, inspect_model
from dppa_mergekit.checks.findings import Finding, error, note
from dppa_mergekit.checks.merged_folder import check_merged_folder, read_recipe
from dppa_mergekit.checks.missing_tensors import can_plan, check_tensors, find_needed_options
from dppa_mergekit.checks.model_compatibility import (
    Stated,
    check_against_base,
    check_donor,
    check_names,
    check_union,
)
from dppa_mergekit.checks.output_folder import check_output, estimate_needs, output_size
from dppa_mergekit.checks.recipe_text import check_keys, check_required
from dppa_mergekit.checks.recipe_yaml import parse
from dppa_mergekit.checks.sampled_weights import check_samples
from dppa_mergekit.checks.slices import check_gradients, check_layer_order, check_layer_ranges
from dppa_mergekit.errors import RecipeError
from dppa_mergekit.recipes.inputs import holders
from dppa_mergekit.recipes.references import is_reference, spell
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
        yield from _check_content(documents[0], findings, (), request)
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
    inspected, of_models = _inspect(content, outputs, request)
    findings += of_models
    findings += _check_layers(content, inspected)
    findings += _compare_models(content, inspected, request.sample)
    known = inspected.base or inspected.first
    if known is not None:
        findings += estimate_needs(content, known, request.out)
    if request.out is not None:
        size = None if known is None else output_size(content, known)
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
            wrong, the method is of this package, and the recipe's models are here.
        loading: How the merge loaded models.
        quick: Whether no tensor is computed again if `verify` is None.
        begin_plan: Called before tensors are computed.
    """
    is_sound = True
    for finding in check_merged_folder(folder, loading):
        is_sound &= finding.severity != "error"
        yield finding
    content = read_recipe(folder)
    # mergekit's own methods give other bytes with another number of threads.
    is_own = content is not None and content.get("merge_method") in method_table.names()
    if verify is None and (quick or not is_sound or not is_own):
        return
    needed = find_needed_options(content or {}, loading)
    if needed:
        yield note(str(folder), f"it cannot be verified without {join_names(needed)}.")
        return
    if verify is None and not can_plan(content or {}, loading):
        return
    from dppa_mergekit.checks.recompute import verify_tensors  # imports torch

    begin_plan()
    yield from verify_tensors(folder, verify or "shards", loading)


def _check_text(content: Mapping[str, object], weighted: bool) -> Iterator[Finding]:
    """Yield what is wrong with a recipe by its text alone."""
    yield from check_keys(content)
    yield from check_required(content, weighted)
    # A mistake in one slice may be in every other.
    yield from dict.fromkeys(
        finding
        for models, base in _find_input_lists(content)
        for finding in check_names(models, base)
    )
    if (method := str(content.get("merge_method"))) in method_table.names():
        yield from check_layer_order(content, method)


def _check_layers(content: Mapping[str, object], inspected: _Inspected) -> Iterator[Finding]:
    """Yield layers that models do not have, and gradients over more layers than they have."""
    layers = {
        name: number
        for name, model in inspected.models.items()
        if isinstance(number := model.config.get("num_hidden_layers"), int)
    }
    yield from check_layer_ranges(content, layers)
    if layers:
        yield from check_gradients(content, max(layers.values()))


@dataclass(frozen=True)
class _Inspected:
    """The models of a recipe.

    Attributes:
        named: The models, as the recipe spells them.
        models: Model -> what is known of it; without those that cannot be found.
        base: The base model, or the first if the recipe names none; None if it cannot be found.
        comparable: The others whose layers are merged with the same layers of the base.
        moved: The others whose layers slices may move.
        awaits_base: Whether the base model is the output of another stage.
    """

    named: Sequence[str]
    models: Mapping[str, CheckpointFacts]
    base: CheckpointFacts | None
    comparable: Sequence[CheckpointFacts]
    moved: Sequence[CheckpointFacts]
    awaits_base: bool

    @property
    def first(self) -> CheckpointFacts | None:
        """The first model that is found."""
        return next(iter(self.models.values()), None)


def _inspect(
    content: Mapping[str, object], outputs: Sequence[str], request: _Request
) -> tuple[_Inspected, list[Finding]]:
    """Return the models of a recipe, and what is wrong with the files of each.

    Where the files of a model are damaged, nothing is said of its tensors: what the damaged ones
    hold is not known.

    Args:
        content: The content of the recipe.
        outputs: The names of its models that are outputs of other stages.
        request: How the recipe is checked.
    """
    all_named = dict.fromkeys(_find_models(content))
    named = [model for model in all_named if model not in outputs]
    models: dict[str, CheckpointFacts] = {}
    found = [
        note(output, "it is the output of that stage, and not there yet.") for output in outputs
    ]
    for model in named:
        facts, of_files = inspect_model(model, request.beside)
        found += of_files
        found += check_adapter(model, request.loading.lora_merge_cache, facts)
        if facts is not None:
            if any(finding.severity == "error" for finding in of_files):
                facts = replace(facts, tensors={}, files={})
            models[model] = facts
            found += check_dtypes(facts)
            found += check_architecture(facts)
    found += check_activations(content, models)
    first = next(iter(models.values()), None)
    base_model = content.get("base_model")
    base = first if base_model is None else models.get(spell(base_model))
    others = [] if base is None else [model for model in models.values() if model is not base]
    moved = [model for model in others if base and not _keeps_layers(content, model, base)]
    comparable = [model for model in others if model not in moved]
    awaits_base = base_model is not None and spell(base_model) in outputs
    return _Inspected(named, models, base, comparable, moved, awaits_base), found


def _compare_models(
    content: Mapping[str, object], inspected: _Inspected, sample: bool
) -> Iterator[Finding]:
    """Yield what does not fit between models and their base.

    Args:
        content: The content of the recipe.
        inspected: Its models.
        sample: Whether slices of the weights are read.
    """
    if inspected.base is None:
        if inspected.models and not inspected.awaits_base:
            yield note("recipe", "its base model cannot be read here to compare the others with.")
        return
    for model in inspected.moved:
        yield note(
            model.model, "slices may move its layers: it was not compared with the base model."
        )
    states = Stated(
        tokenizer=bool(content.get("tokenizer") or content.get("tokenizer_source")),
        template=content.get("chat_template") is not None,
        dtype=content.get("dtype") is not None or content.get("out_dtype") is not None,
    )
    yield from check_donor(inspected.base, states)
    tokenizer = content.get("tokenizer")
    source = tokenizer.get("source") if isinstance(tokenizer, dict) else None
    source = source or content.get("tokenizer_source")
    yield from check_union(list(inspected.models.values()), inspected.base, source)
    for model in inspected.comparable:
        yield from check_against_base(model, inspected.base, states)
        if sample:
            yield from check_samples(model, inspected.base)


def _keeps_layers(
    content: Mapping[str, object], fine_tuned: CheckpointFacts, base: CheckpointFacts
) -> bool:
    """Return whether the layers of a model are merged with the same layers of the base."""
    if not any(holder.get("slices") for holder in holders(dict(content))):
        return True
    ours, theirs = (model.config.get("num_hidden_layers") for model in (fine_tuned, base))
    return content.get("merge_method") in method_table.names() and ours == theirs


def _find_input_lists(content: Mapping[str, object]) -> Iterator[tuple[list[str], str | None]]:
    """Yield every list of inputs in a recipe, and the base model that they are merged with."""
    for holder in holders(dict(content)):
        base = holder.get("base_model") or content.get("base_model")
        for key in ("models", "sources"):
            entries = holder.get(key)
            models = [
                spell(entry["model"])
                for entry in (entries if isinstance(entries, list) else ())
                if isinstance(entry, dict) and "model" in entry
            ]
            yield models, None if base is None else spell(base)


def _find_models(content: object) -> Iterator[str]:
    """Yield every model that a recipe names, wherever it does."""
    if isinstance(content, list):
        for part in content:
            yield from _find_models(part)
    elif isinstance(content, dict):
        for key, value in content.items():
            if key in ("model", "base_model"):
                if value is not None and is_reference(value):
                    yield spell(value)
            elif key in ("models", "slices", "modules", "sources") or isinstance(value, dict):
                yield from _find_models(value)
