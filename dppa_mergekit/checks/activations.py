"""The activations files of a recipe: whether they can be used, and with these models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts
from dppa_mergekit.checks.findings import Finding, error, note, warning
from dppa_mergekit.errors import DppaError
from dppa_mergekit.method_table import method_of
from dppa_mergekit.parameters import ACTIVATIONS
from dppa_mergekit.recipes.inputs import holders, inputs_of, values_in
from dppa_mergekit.recipes.references import identity, named, spell
from dppa_mergekit.report.phrases import such_as

if TYPE_CHECKING:
    from dppa_mergekit.moments.activations_file import ActivationsFile


def check_activations(
    content: Mapping[str, object], inspected: Mapping[str, CheckpointFacts]
) -> Iterator[Finding]:
    """Yield what is wrong with the activations of a recipe.

    Args:
        content: The content of the recipe.
        inspected: Model -> what is known of it.
    """
    method = method_of(str(content.get("merge_method")))
    if method is None or ACTIVATIONS not in method.parameters:
        return
    stated = [holder.get("base_model") for holder in holders(dict(content))]
    bases = {identity(base) for base in stated if base is not None}
    given: dict[str, object] = {}
    for entry, parameters in inputs_of(dict(content)):
        model = spell(entry["model"])
        if identity(model) not in bases:
            given[model] = parameters.get(ACTIVATIONS.name)
    without = [model for model, path in given.items() if path is None]
    if without and len(without) < len(given):
        yield error(
            without[0],
            "there are no activations, and other models have some; allowed are activations for all "
            "models, or for none.",
        )
    if len(given) == 1:
        yield warning(
            next(iter(given)),
            "it is the only fine-tuned model, so its delta is added as it is; a combination by "
            "inputs needs two.",
        )
    for model, setting in given.items():
        for path in values_in(setting):
            if isinstance(path, str):
                yield from _check_file(model, path, inspected.get(model))


def _check_file(model: str, path: str, facts: CheckpointFacts | None) -> Iterator[Finding]:
    """Yield what is wrong with the file of one model."""
    # Imports torch, so only here.
    from dppa_mergekit.moments.activations_file import ActivationsFile

    try:
        file = ActivationsFile.open(path)
        file.check_content()
    except DppaError as problem:
        yield error(model, str(problem))
        return
    if facts is None:
        return
    yield from _check_weights(model, file, facts)
    sizes = {linear.tensor: size for linear, size in file.sizes().items()}
    first = {linear.tensor: stored.inputs_first for linear, (_, stored) in file.entries.items()}
    for name, header in facts.tensors.items():
        if name in sizes and len(header.shape) > 1:
            inputs = header.shape[-2] if first[name] else header.shape[-1]
            if sizes[name] != inputs:
                yield error(model, file.other_size(name, sizes[name], inputs))
                return
    unused = file.observation.unused
    if unused:
        sentence = such_as(
            unused,
            f"tensor with linears was reached by no token in {path}",
            f"tensors with linears were reached by no token in {path}",
        )
        yield note(model, f"{sentence}; a merge takes the moments of their deltas.")


def _check_weights(model: str, file: ActivationsFile, facts: CheckpointFacts) -> Iterator[Finding]:
    """Yield whether a file was observed in other weights than the model's."""
    # The facts of a model with a LoRA are those of the model below it.
    if facts.folder is None or not facts.tensors or named(model).lora is not None:
        return
    from mergekit.io.lazy_tensor_loader import ShardedTensorIndex

    from dppa_mergekit.checkpoints.headers import Checkpoint

    index = ShardedTensorIndex.from_disk(str(facts.folder))
    if Checkpoint(model, index).weights_digest() != file.observation.weights:
        yield error(model, file.other_weights("this model"))
