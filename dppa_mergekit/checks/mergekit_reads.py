"""What mergekit would read and write, where the stored names alone do not tell.

mergekit looks for a tensor under aliases and tied names, and packs experts that are stored one by
one as it reads them. Its own plan of a merge tells the names; no weights are read for it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import dppa_mergekit.methods  # noqa: F401  # registers them where autoload is switched off
from dppa_mergekit.checkpoints.loading_options import LoadingOptions
from dppa_mergekit.checkpoints.tensor_loading import checkpoint_of, own_name
from dppa_mergekit.merging.dry_run import DryRun, dry_run, dry_run_again
from dppa_mergekit.merging.misfits import Misfit
from dppa_mergekit.tensor_names import block_of

if TYPE_CHECKING:
    from mergekit.graph import Task
    from mergekit.io.tasks import LoadTensor

    from dppa_mergekit.recipes.recipe import Recipe


@dataclass(frozen=True)
class ModelReads:
    """What a merge reads of one model.

    Attributes:
        absent: Tensors that are neither stored nor packed from stored ones, or only stored under
            tied names.
        left_out: Optional tensors that are neither, and that other models have.
    """

    absent: Collection[str]
    left_out: Collection[str]


@dataclass(frozen=True)
class PlannedMerge:
    """What a merge reads and writes.

    Attributes:
        reads: Model, as the recipe spells it -> what is read of it.
        outputs: Name of a tensor -> whether the merge may do without it.
        filtered: Names that filters of parameters are matched with: those of the outputs, and those
            of the inputs in their models.
        losses: The tensors that it would lose, as the environment allows.
    """

    reads: Mapping[str, ModelReads]
    outputs: Mapping[str, bool]
    filtered: frozenset[str]
    losses: Sequence[Misfit]


def plan_merge(recipe: Recipe, loading: LoadingOptions) -> PlannedMerge:
    """Plan a merge to come. Raises DppaError where it cannot be planned."""
    with _silence_logs(), dry_run(recipe, "", loading=loading) as planned:
        return _summarize(planned)


def plan_merge_again(recipe_file: Path, loading: LoadingOptions) -> PlannedMerge:
    """Plan an earlier merge by the recipe in its folder. Raises DppaError as above."""
    with _silence_logs(), dry_run_again(recipe_file, loading) as planned:
        return _summarize(planned)


@contextmanager
def _silence_logs() -> Iterator[None]:
    """Keep planning from logging warnings, some with tracebacks, that only concern a real merge."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _summarize(planned: DryRun) -> PlannedMerge:
    from mergekit.io.tasks import SaveTensor

    saves = [task for task in planned.tasks if isinstance(task, SaveTensor)]
    loads: dict[object, list[LoadTensor]] = defaultdict(list)
    for save in saves:
        for load in _find_loads(save):
            loads[load.model].append(load)
    outputs = {save.tensor_name: bool(save.optional) for save in saves}
    inputs = {own_name(load) for of_model in loads.values() for load in of_model}
    return PlannedMerge(
        {str(model): _summarize_reads(model, of_model) for model, of_model in loads.items()},
        outputs,
        frozenset(outputs.keys() | inputs),
        planned.losses,
    )


def _find_loads(task: Task[object]) -> Iterator[LoadTensor]:
    """Yield the tasks below a task that read a tensor."""
    from mergekit.io.tasks import LoadTensor

    if isinstance(task, LoadTensor):
        yield task
    for argument in task.arguments().values():
        yield from _find_loads(argument)


def _summarize_reads(model: object, loads: Sequence[LoadTensor]) -> ModelReads:
    from mergekit.io.tasks import LoaderCache

    stored = checkpoint_of(loads[0], model).stored()
    names_stored = set(stored)
    config = loads[0].model.config(trust_remote_code=LoaderCache().trust_remote_code)
    sources = _PackingSources(config.model_type, stored)
    absent: list[str] = []
    left_out: list[str] = []
    for load in loads:
        untied = [own_name(load), *(load.aliases or ())]
        is_stored = not names_stored.isdisjoint(untied)
        if not (is_stored or any(sources.can_give(name) for name in untied)):
            names = left_out if load.optional and not load.tied_names else absent
            names.append(own_name(load))
    return ModelReads(absent, left_out)


class _PackingSources:
    """The stored tensors of a model, from which others may be packed.

    A packed tensor comes from one block. mergekit searches all names that it is given for each
    tensor anew, which takes minutes for a hundred blocks of a hundred experts.
    """

    def __init__(self, model_type: str, stored: Sequence[str]) -> None:
        self._model_type = model_type
        self._by_block: dict[int | None, set[str]] = defaultdict(set)
        for name in stored:
            self._by_block[_block_number(name)].add(name)

    def can_give(self, name: str) -> bool:
        """Return whether a tensor of that name can be packed from the stored ones."""
        from mergekit.architecture.conversion import can_convert_checkpoint_keys

        sources = self._by_block[_block_number(name)]
        return bool(can_convert_checkpoint_keys(self._model_type, sources, name))


def _block_number(name: str) -> int | None:
    """Return the number of a tensor's block, without its stack, which a conversion may rename."""
    block = block_of(name)
    return None if block is None else block.number
