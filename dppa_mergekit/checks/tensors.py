"""Whether models of a recipe have the tensors of their base, and whether filters fit any.

Both are told by the names under which tensors are stored, for as long as these agree. Where they do
not, mergekit may still know them, and it is asked for its plan of the merge; that takes seconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit import method_table
from dppa_mergekit.checks.checkpoint_files import Checkpoint, Stored
from dppa_mergekit.checks.findings import Finding, error, warning
from dppa_mergekit.errors import DppaError
from dppa_mergekit.recipes import Recipe, holders, inputs_of
from dppa_mergekit.tensor_names import natural_order

if TYPE_CHECKING:
    from dppa_mergekit.checks.mergekit_reads import Planned

BUFFERS = ("inv_freq", "rotary_emb", "position_ids", ".attn.bias", ".attn.masked_bias")
"""Parts of the names of what older releases of transformers stored, and newer ones compute."""

EXPERT = re.compile(r"\.experts\.\d+\.")
"""In the names of tensors that mergekit may pack as it reads them, and so write under others."""

MISSING = "of the base model are missing"

EXTRA = "are in no tensor of the base model, and no output holds them"


def without(some: Mapping[str, Stored], others: Mapping[str, Stored], tied: bool) -> list[str]:
    """The tensors of a checkpoint that another has not under their names, and should have.

    Args:
        some: Of the one.
        others: Of the other.
        tied: Whether the other may do without an output head.
    """
    return [
        name
        for name in some
        if name not in others
        and not any(part in name for part in BUFFERS)
        and not (tied and "lm_head" in name)
    ]


def such_as(names: Collection[str], sentence: str) -> str:
    """How many tensors it is that something is said of, and one of them."""
    return f"{len(names)} tensors {sentence}, such as {min(names, key=natural_order)}"


def is_at_hand(content: Mapping[str, object]) -> bool:
    """Whether mergekit can plan a recipe and neither download a model nor merge a LoRA for it."""
    bases = [holder.get("base_model") for holder in holders(dict(content))]
    named = [each["model"] for each, _ in inputs_of(content)]
    return all(
        isinstance(model, str)
        and "+" not in model
        and os.path.isdir(model)
        and any(Path(model).glob("*.safetensors"))
        for model in (*named, *(base for base in bases if base is not None))
    )


@dataclass(frozen=True)
class Difference:
    """The names that a model has and its base has not, and the other way about.

    Attributes:
        model: As the recipe spells it.
        missing: Of the base.
        extra: Of the model.
    """

    model: str
    missing: Sequence[str]
    extra: Sequence[str]

    @classmethod
    def of(cls, fine_tuned: Checkpoint, base: Checkpoint) -> Difference:
        """Of a fine-tuned model and its base; none where tensors could not be looked at."""
        if not fine_tuned.tensors or not base.tensors:
            return cls(fine_tuned.model, (), ())
        tied = any(bool(each.config.get("tie_word_embeddings")) for each in (fine_tuned, base))
        return cls(
            fine_tuned.model,
            without(base.tensors, fine_tuned.tensors, tied),
            without(fine_tuned.tensors, base.tensors, tied=True),
        )


def checked(
    content: Mapping[str, object], fine_tuned: Sequence[Checkpoint], base: Checkpoint
) -> Iterator[Finding]:
    """Tensors that are missing or would be lost, and filters that fit nothing.

    Args:
        content: Of the recipe.
        fine_tuned: The fine-tuned models that are to be like the base.
        base: The base.
    """
    every = [Difference.of(each, base) for each in fine_tuned]
    differences = [each for each in every if each.missing or each.extra]
    lasting = [name for name in base.tensors if not EXPERT.search(name)]
    filters = _fitting_none(_filters(content), lasting) if base.tensors else []
    if not differences and not filters:
        return
    at_hand = is_at_hand(content)
    planned = None
    if at_hand:
        try:
            planned = _planned(content)
        except DppaError as problem:
            yield warning("recipe", problem.message)
    if planned is None:
        for each in differences:
            yield from _by_names(each, certain=at_hand)
    else:
        for each in differences:
            yield from _by_plan(each, planned, base.model)
        missing = {name for each in differences for name in each.missing}
        yield from _of_base(base.model, missing, planned)
    for text in _fitting_none(filters, base.tensors if planned is None else planned.filtered):
        yield warning("recipe", f"the filter {text!r} is in no tensor's name.")


def _planned(content: Mapping[str, object]) -> Planned:
    """mergekit's plan. Raises DppaError where it makes none."""
    from dppa_mergekit.checks.mergekit_reads import planned

    recipe = Recipe(dict(content), "it")
    if content.get("merge_method") in method_table.names():
        # Weights may still be to be found; what is read does not depend on them.
        recipe = recipe.with_start(1.0)
    return planned(recipe)


def _by_names(found: Difference, certain: bool) -> Iterator[Finding]:
    """What stored names tell.

    Args:
        found: Between the model and the base.
        certain: Whether mergekit was asked, and has no plan of such a merge.
    """
    for names, sentence in ((found.missing, MISSING), (found.extra, EXTRA)):
        if names and certain:
            yield error(found.model, f"{such_as(names, sentence)}.")
        elif names:
            yield warning(
                found.model,
                f"{such_as(names, sentence)}; or the models differ only in names: the merge itself "
                f"will show whether mergekit knows them.",
            )


def _by_plan(found: Difference, planned: Planned, base: str) -> Iterator[Finding]:
    """What the plan tells."""
    reading, of_base = planned.readings.get(found.model), planned.readings.get(base)
    if reading is None or of_base is None:
        yield from _by_names(found, certain=True)
        return
    missing = [name for name, fails in reading.absent.items() if fails or name in found.missing]
    extra = [name for name in found.extra if name not in reading.names]
    if reading.is_packed and of_base.is_packed:
        # Both are stored expert by expert: what one has, the other must have.
        missing += [name for name in found.missing if name not in of_base.names]
    elif reading.is_packed:
        extra = []
    for names, sentence in ((missing, "that mergekit reads are missing"), (extra, EXTRA)):
        if names:
            yield error(found.model, f"{such_as(names, sentence)}.")


def _of_base(base: str, missing: Collection[str], planned: Planned) -> Iterator[Finding]:
    """What the base lacks, and what of it is lost, of the tensors that a model has not."""
    reading = planned.readings.get(base)
    if reading is None:
        return
    absent = [name for name, fails in reading.absent.items() if fails]
    if absent:
        yield error(base, f"{such_as(absent, 'that mergekit reads are missing')}.")
    lost = [name for name in missing if name not in reading.names]
    if lost and not reading.is_packed:
        yield warning(base, f"{such_as(lost, 'are in no output')}.")


def _fitting_none(filters: Collection[str], names: Collection[str]) -> list[str]:
    return sorted(text for text in filters if not any(text in name for name in names))


def _filters(content: object) -> set[str]:
    """All filters of parameters that are no asterisk."""
    if isinstance(content, list):
        return set().union(*(_filters(each) for each in content))
    if not isinstance(content, dict):
        return set()
    found = set().union(*(_filters(each) for each in content.values()))
    if "value" in content and isinstance(content.get("filter"), str):
        found.add(content["filter"])
    return found - {"*"}
