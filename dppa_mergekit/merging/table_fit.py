"""Whether mergekit's table of an architecture fits one checkpoint, by the names of its tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dppa_mergekit.tensor_names import is_buffer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from dppa_mergekit.checkpoints.tensor_loading import Conversion

EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")
"""Matches a tensor of one expert: the stack of experts, the expert's number, the rest."""

NUMBERS_OF_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""The keys of configurations that tell how many experts a stack has."""


class Weight(Protocol):
    """The used part of mergekit's WeightInfo (mergekit/architecture/base.py, release 0.1.5)."""

    name: str
    optional: bool
    aliases: tuple[str, ...] | None
    tied_names: tuple[str, ...] | None


@dataclass(frozen=True)
class TableFit:
    """How a table fits one checkpoint.

    Attributes:
        unread: Stored tensors of which nothing is read, without those that need no merge.
        absent: Tensors that are read and are neither stored nor packed from stored ones.
    """

    unread: Sequence[str]
    absent: Sequence[str]


def fit_table(
    stored: Collection[str],
    weights: Iterable[Weight],
    conversions: Sequence[Conversion],
    tied: Mapping[str, str],
) -> TableFit:
    """Return how a table fits a checkpoint.

    Args:
        stored: The names of all stored tensors.
        weights: What is read. Of several stored names of a weight, the first is read.
        conversions: Those by which tensors are packed from stored ones.
        tied: Name of a tensor -> name of the one that replaces it when the model is loaded.
    """
    known = set(stored)
    read: set[str] = set()
    packed: dict[str, Weight] = {}
    for weight in weights:
        own = own_names(weight)
        found = next((name for name in (*own, *(weight.tied_names or ())) if name in known), None)
        if found is None:
            packed.update(dict.fromkeys(own, weight))
        else:
            read.update((found, weight.name))
    unread: list[str] = []
    patterns: dict[str, set[str]] = {}
    needed: dict[str, set[str]] = {}
    for name in stored:
        if name in read:
            continue
        found_in = _targets(name, conversions)
        targets = packed.keys() & found_in.keys()
        for target in targets:
            conversion, pattern = found_in[target]
            own_target = packed[target].name
            patterns.setdefault(own_target, set()).add(pattern)
            is_joint = hasattr(conversion, "operations")
            needed[own_target] = set(conversion.source_patterns) if is_joint else {pattern}
        if not (targets or is_buffer(name) or tied.get(name) in read):
            unread.append(name)
    given = {name for name, found in patterns.items() if needed[name] <= found}
    absent = [
        weight.name
        for name, weight in packed.items()
        if name == weight.name and not weight.optional and name not in given
    ]
    return TableFit(unread, absent)


def missing_experts(config: PretrainedConfig, stored: Sequence[str]) -> list[str]:
    """Return the tensors of experts that a model lacks.

    mergekit would stack those that are left, each under the number of another.
    """
    found: dict[tuple[str, str], set[int]] = {}
    for name in stored:
        if matched := EXPERT.fullmatch(name):
            stack, number, rest = matched.groups()
            found.setdefault((stack, rest), set()).add(int(number))
    if not found:
        return []
    stated = {getattr(config.get_text_config(), key, None) for key in NUMBERS_OF_EXPERTS}
    number_of_experts = max(max(numbers) for numbers in found.values()) + 1
    if number_of_experts not in stated:
        known = [number for number in stated if isinstance(number, int)]
        number_of_experts = max([number_of_experts, *known])
    return [
        f"{stack}.{number}.{rest}"
        for (stack, rest), numbers in found.items()
        for number in set(range(number_of_experts)) - numbers
    ]


def own_names(weight: Weight) -> tuple[str, ...]:
    """Return the names under which a weight may be stored, without those of tied weights."""
    return weight.name, *(weight.aliases or ())


def _targets(name: str, conversions: Sequence[Conversion]) -> dict[str, tuple[Conversion, str]]:
    """Return the names that transformers' conversions, one after the other, make of a name.

    Returns:
        Name -> the conversion that made it, and the pattern of the source that it matched.
    """
    found: dict[str, tuple[Conversion, str]] = {}
    for conversion in conversions:
        for source in (name, *found):
            renamed, pattern = conversion.rename_source_key(source)
            if pattern is not None:
                first = conversion.target_patterns[0]
                for target in conversion.target_patterns:
                    found[renamed.replace(first, target, 1)] = conversion, pattern
    found.pop(name, None)
    return found
