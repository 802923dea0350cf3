"""What mergekit would read and write, where stored names alone do not tell.

It looks for a tensor under aliases and tied names, and packs what is stored expert by expert when
it reads it. Its own plan of a merge says which; no weights are read for that.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit.checkpoints.tensor_loading import checkpoint_of, own_name, possible_names
from dppa_mergekit.merging.dry_run import dry_run, dry_run_again
from dppa_mergekit.tensor_names import block_of

if TYPE_CHECKING:
    from mergekit.graph import Task
    from mergekit.io.tasks import LoadTensor

    from dppa_mergekit.recipes import Recipe


@dataclass(frozen=True)
class Reading:
    """What a merge reads of one model.

    Attributes:
        names: All under which mergekit looks for a tensor.
        absent: Tensors that are not stored, but perhaps under tied names -> whether the merge
            fails for it.
        is_packed: Whether stored tensors are packed into others as they are read.
    """

    names: frozenset[str]
    absent: Mapping[str, bool]
    is_packed: bool


@dataclass(frozen=True)
class Planned:
    """What a merge reads and writes.

    Attributes:
        readings: Model, as the recipe spells it -> what is read of it.
        outputs: Name -> whether the merge may do without it.
        filtered: Names that filters of parameters are held against: of outputs, and of inputs in
            their models.
    """

    readings: Mapping[str, Reading]
    outputs: Mapping[str, bool]
    filtered: frozenset[str]


def planned(recipe: Recipe) -> Planned:
    """Of a merge to come. Raises DppaError where it cannot be planned."""
    with _silent(), dry_run(recipe, "") as planned:
        return _of_tasks(planned.tasks)


def planned_again(recipe_file: Path) -> Planned:
    """Of a merge that was, by the recipe in its folder. Raises DppaError as above."""
    with _silent(), dry_run_again(recipe_file) as planned:
        return _of_tasks(planned.tasks)


@contextmanager
def _silent() -> Iterator[None]:
    """Without what is logged of a plan, with tracebacks, for those who are to merge by it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _of_tasks(tasks: Sequence[Task[object]]) -> Planned:
    from mergekit.io.tasks import SaveTensor

    saves = [task for task in tasks if isinstance(task, SaveTensor)]
    loads: dict[object, list[LoadTensor]] = defaultdict(list)
    for save in saves:
        for load in _loads(save):
            loads[load.model].append(load)
    outputs = {save.tensor_name: bool(save.optional) for save in saves}
    of_inputs = {own_name(load) for each in loads.values() for load in each}
    return Planned(
        {str(model): _reading(model, each) for model, each in loads.items()},
        outputs,
        frozenset(outputs.keys() | of_inputs),
    )


def _loads(task: Task[object]) -> Iterator[LoadTensor]:
    """The tasks below one that read a tensor."""
    from mergekit.io.tasks import LoadTensor

    if isinstance(task, LoadTensor):
        yield task
    for each in task.arguments().values():
        yield from _loads(each)


def _reading(model: object, loads: Sequence[LoadTensor]) -> Reading:
    stored = checkpoint_of(loads[0], model).stored()
    held = set(stored)
    sources = _Sources(loads[0].model.config().model_type, stored)
    names: set[str] = set()
    absent: dict[str, bool] = {}
    is_packed = False
    for load in loads:
        every = possible_names(load)
        names.update(every)
        direct = [own_name(load), *(load.aliases or ())]
        if held.intersection(direct):
            continue
        if any(sources.give(name) for name in direct):
            is_packed = True
        else:
            absent[own_name(load)] = not load.optional and not held.intersection(every)
    return Reading(frozenset(names), absent, is_packed)


class _Sources:
    """The stored tensors of a model, from which others may be packed.

    What is packed comes from one block. mergekit goes through all names that it is given, for each
    tensor anew: of a hundred blocks of a hundred experts that takes minutes.
    """

    def __init__(self, kind: str, stored: Sequence[str]) -> None:
        self._kind = kind
        self._by_block: dict[int | None, set[str]] = defaultdict(set)
        for name in stored:
            self._by_block[_number(name)].add(name)

    def give(self, name: str) -> bool:
        """Whether a tensor of that name can be packed from them."""
        from mergekit.architecture.conversion import can_convert_checkpoint_keys

        sources = self._by_block[_number(name)]
        return bool(can_convert_checkpoint_keys(self._kind, sources, name))


def _number(name: str) -> int | None:
    """Of the block; not its stack, which a conversion may rename."""
    block = block_of(name)
    return None if block is None else block.number
