"""The models of a recipe: found, looked at one by one, and compared with their base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dppa_mergekit import method_table
from dppa_mergekit.checkpoints.loading_options import LoadingOptions
from dppa_mergekit.checks.activations import check_activations
from dppa_mergekit.checks.adapters import check_adapter
from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts
from dppa_mergekit.checks.checkpoint_files import check_architecture, check_dtypes, inspect_model
from dppa_mergekit.checks.findings import Finding, note
from dppa_mergekit.checks.model_compatibility import (
    Stated,
    check_against_base,
    check_donor,
    check_union,
    check_unnamed_donor,
    check_vocabulary,
)
from dppa_mergekit.checks.sampled_weights import check_samples
from dppa_mergekit.recipes.inputs import holders, inputs_of, models_of
from dppa_mergekit.recipes.references import Reference, identity, is_reference, named, spell

Node = Mapping[str, object]


@dataclass(frozen=True)
class InspectedModels:
    """The models of a recipe.

    Attributes:
        named: The models, as the recipe spells them.
        models: Model -> what is known of it; without those that cannot be found.
        base: The base model of the recipe or of a slice, or the first if there is none; None if it
            cannot be found.
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


def inspect_models(
    content: Node, outputs: Sequence[str], beside: Path, lora_cache: str | None
) -> tuple[InspectedModels, list[Finding]]:
    """Return the models of a recipe, and what is wrong with the files of each.

    Where the files of a model are damaged, nothing is said of its tensors: what the damaged ones
    hold is not known.

    Args:
        content: The content of the recipe.
        outputs: The names of other stages whose outputs it merges.
        beside: The folder of the recipe.
        lora_cache: The folder of models that are merged with their LoRAs; None if not given.
    """
    references = [value for value in models_of(dict(content)) if is_reference(value)]
    all_named = dict.fromkeys(spell(value) for value in references)
    awaited = [model for model in all_named if named(model).model.path in outputs]
    present = [model for model in all_named if model not in awaited]
    overridden = {spell(value) for value in references if Reference.parse(value).architecture}
    models: dict[str, CheckpointFacts] = {}
    found = [note(model, "it is the output of that stage, and not there yet.") for model in awaited]
    for model in present:
        facts, of_files = inspect_model(model, beside)
        found += of_files
        found += check_adapter(model, lora_cache, facts)
        if facts is not None:
            if any(finding.severity == "error" for finding in of_files):
                facts = replace(facts, tensors={}, files={})
            models[model] = facts
            found += check_dtypes(facts)
            if model not in overridden:
                found += check_architecture(facts)
    found += check_activations(content, models)
    first = next(iter(models.values()), None)
    bases = {identity(base) for base in _bases_of(content)}
    of_bases = (facts for model, facts in models.items() if identity(model) in bases)
    base = next(of_bases, None) if bases else first
    others = [] if base is None else [model for model in models.values() if model is not base]
    moved = [model for model in others if base and not _keeps_layers(content, model, base)]
    comparable = [model for model in others if model not in moved]
    awaits_base = not bases.isdisjoint(map(identity, awaited))
    return InspectedModels(present, models, base, comparable, moved, awaits_base), found


def compare_models(
    content: Node, inspected: InspectedModels, sample: bool, loading: LoadingOptions
) -> Iterator[Finding]:
    """Yield what does not fit between models and their base.

    Args:
        content: The content of the recipe.
        inspected: Its models.
        sample: Whether slices of the weights are read.
        loading: How the merge will load models.
    """
    stated = Stated.by(content, loading)
    if not content.get("base_model"):
        yield from check_unnamed_donor(list(inspected.models.values()), stated)
    if inspected.base is None:
        if inspected.models and not inspected.awaits_base:
            yield note("recipe", "its base model cannot be read here to compare the others with.")
        return
    for model in inspected.moved:
        yield note(
            model.model, "slices may move its layers: it was not compared with the base model."
        )
        if model.model in _models_at_ends(content):
            yield from check_vocabulary(model, inspected.base, stated)
    yield from check_donor(inspected.base, stated)
    yield from check_union(list(inspected.models.values()), inspected.base, stated)
    for model in inspected.comparable:
        yield from check_against_base(model, inspected.base, stated)
        if sample:
            yield from check_samples(model, inspected.base)


def find_input_lists(content: Node) -> Iterator[tuple[list[str], str | None]]:
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


def _bases_of(content: Node) -> list[object]:
    """Return the base models of a recipe and of its slices."""
    return [holder["base_model"] for holder in holders(dict(content)) if holder.get("base_model")]


def _models_at_ends(content: Node) -> set[str]:
    """Return the models of the first and the last slices, which give embeddings and heads."""
    stacks = [holder.get("slices") for holder in holders(dict(content))]
    ends = [
        end
        for stack in stacks
        if isinstance(stack, list) and stack
        for end in (stack[0], stack[-1])
    ]
    return {
        spell(entry["model"])
        for end in ends
        if isinstance(end, dict)
        for entry, _ in inputs_of(end)
    }


def _keeps_layers(content: Node, fine_tuned: CheckpointFacts, base: CheckpointFacts) -> bool:
    """Return whether the layers of a model are merged with the same layers of the base."""
    if not any(holder.get("slices") for holder in holders(dict(content))):
        return True
    ours, theirs = (model.config.get("num_hidden_layers") for model in (fine_tuned, base))
    return content.get("merge_method") in method_table.names() and ours == theirs
