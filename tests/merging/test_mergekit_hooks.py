"""What mergekit plans, runs, shares among threads and devices, and forgets."""

import gc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoints import recipe
from commands import Merge
from mergekit import multigpu_executor
from mergekit.architecture import get_architecture_info
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor, Task
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods import merge_state_dicts
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from three_models import MODELS, assert_equal

from dppa_mergekit import DppaError
from dppa_mergekit.allocation.measurement import TensorSource
from dppa_mergekit.deltas.delta import Delta
from dppa_mergekit.merging import mergekit_hooks, model_allocation


@pytest.fixture(scope="module")
def family(three_models: Path) -> Path:
    return three_models


def test_a_state_dict_may_be_keyed_as_a_plan_is(family: Path, merge: Merge) -> None:
    """Left over from a merge of checkpoints, its plan has no part in a merge in memory."""
    merge(recipe(family, "dppa", MODELS))
    generator = torch.Generator().manual_seed(11)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
    models = [
        {name: torch.randn(40, 50, generator=generator) ** 3 for name in names} for _ in range(2)
    ]
    parameters = {"weight": 1.0, "density": 0.2}
    paths = [ModelReference.parse(str(family / name)) for name in ("base", "math")]
    keyed = merge_state_dicts(
        dict(zip(paths, models, strict=True)), "dppa", base=paths[0], parameters=parameters
    )
    assert_equal(keyed, merge_state_dicts(models, "dppa", base=0, parameters=parameters))


def tasks(content: dict[str, object]) -> list[Task]:
    """What mergekit plans for a recipe: a task for every output tensor."""
    configuration = MergeConfiguration.model_validate(content)
    options = MergeOptions()
    LoaderCache().setup(options)
    planner = MergePlanner(
        configuration,
        get_architecture_info(configuration, options),
        options,
        configuration.base_model.config(),
    )
    planner._plan()
    return [task for _, task in planner._tensors]


def test_two_merges_may_be_planned_before_the_first_is_run(family: Path, merge: Merge) -> None:
    one = recipe(family, "dppa", MODELS)
    other = recipe(
        family, "dppa", MODELS, dtype="float16", parameters={"significance_multiple": 3.0}
    )
    wanted = [merge(content, output=name) for name, content in (("one", one), ("other", other))]
    planned = [tasks(content) for content in (one, other)]
    for these, expected_tensors in zip(planned, wanted, strict=True):
        run = Executor(these).run(quiet=True)
        assert_equal({task.output_weight.name: value for task, value in run}, expected_tensors)


def test_a_task_that_was_not_planned_is_refused(family: Path) -> None:
    """As it would be if a later mergekit called the method from elsewhere."""
    task = tasks(recipe(family, "dppa", MODELS))[0]
    with pytest.raises(DppaError, match="did not see mergekit plan"):
        list(Executor([task.model_copy()]).run(quiet=True))


def test_a_task_made_by_hand_joins_no_plan(family: Path, merge: Merge) -> None:
    """Not even that of the merge before it in the same thread."""
    content = recipe(family, "dppa", MODELS)
    merge(content)
    planned = tasks(content)
    made = type(planned[0])(
        **{name: getattr(planned[0], name) for name in planned[0].model_fields_set}
    )
    with pytest.raises(DppaError, match="did not see mergekit plan"):
        list(Executor([made]).run(quiet=True))
    run = dict(Executor(planned).run(quiet=True))
    assert len(run) == len(planned)


def test_a_plan_dies_with_its_tasks(family: Path) -> None:
    MergePlanner._model_arch.cache_clear()
    gc.collect()
    before = len(mergekit_hooks._PLAN_OF_TASK)
    planned = tasks(recipe(family, "dppa", MODELS))
    assert len(mergekit_hooks._PLAN_OF_TASK) == before + len(planned)
    del planned
    MergePlanner._model_arch.cache_clear()  # mergekit's own cache holds planners
    gc.collect()
    assert len(mergekit_hooks._PLAN_OF_TASK) <= before


def test_merging_in_threads(family: Path, merge: Merge) -> None:
    content = recipe(family, "dppa", MODELS)
    wanted = merge(content)
    planned = tasks(content)
    with ThreadPoolExecutor(4) as pool:
        parts = pool.map(
            lambda some: list(Executor(some).run(quiet=True)), [planned[i::4] for i in range(4)]
        )
    merged = {task.output_weight.name: value for part in parts for task, value in part}
    assert_equal(merged, wanted)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_mergekits_executor_of_several_devices(
    devices: int, family: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its frame but the GPUs: each device is a thread on the CPU, without a stream."""
    measured = []

    def counting(sources: Sequence[TensorSource], *rest: object) -> object:
        read = [replace(source, load=partial(loading, source)) for source in sources]
        return measure(read, *rest)

    def loading(source: TensorSource) -> object:
        measured.append(source.name)
        return source.load()

    measure = model_allocation.measure
    monkeypatch.setattr(model_allocation, "measure", counting)
    idle = SimpleNamespace(synchronize=lambda device: None)
    monkeypatch.setattr(multigpu_executor, "get_torch_accelerator_type", lambda: "cpu")
    monkeypatch.setattr(multigpu_executor, "get_torch_accelerator_module", lambda kind: idle)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    content = recipe(family, "dppa", MODELS)
    wanted = merge(content)
    names = sorted(measured)
    measured.clear()
    executor = multigpu_executor.MultiGPUExecutor(tasks(content), devices, torch.device("cpu"))
    assert len(executor.gpu_assignments) == devices
    merged = {task.output_weight.name: value for task, value in executor.run(quiet=True)}
    assert_equal(merged, wanted)
    # Of the statistics, each tensor is read once, or twice for its tails, as by one device.
    assert sorted(measured) == names
    assert len(names) >= len(wanted)


def test_a_merge_that_has_ended_lets_go(family: Path, merge: Merge) -> None:
    """mergekit's planners live on; what merging needed does not."""
    for method in ("dppa", "dare_dpa", "dppa_ties"):
        merge(recipe(family, method, MODELS))
    gc.collect()
    assert not [
        each
        for each in gc.get_objects()
        if isinstance(each, (model_allocation.ModelAllocation, Delta))
    ]
