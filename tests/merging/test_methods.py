"""The merge methods against the oracle, and at their edges against mergekit's own methods."""

import gc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy
import oracle
import pytest
import torch
from checkpoints import recipe, save_family, tensors_of
from mergekit import multigpu_executor
from mergekit.architecture import get_architecture_info
from mergekit.common import ModelReference
from mergekit.config import MergeConfiguration
from mergekit.graph import Executor, Task
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods import TensorGroup, get, merge_state_dicts, merge_tensors
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner
from mergekit.sparsify import magnitude

from dppa_mergekit import DppaError
from dppa_mergekit.allocation.measurement import TensorSource
from dppa_mergekit.deltas.delta import Delta
from dppa_mergekit.merging import mergekit_hooks, model_allocation

Tensors = dict[str, torch.Tensor]
Merge = Callable[..., Tensors]
MODELS = {
    "math": {"weight": 0.7, "density": 0.25, "amplify_90": 2.1, "amplify_80": 1.3},
    "law": {"weight": 0.4, "density": 0.1, "amplify_90": 1.7, "amplify_dense": 0.5},
    "bank": {"weight": -0.2, "density": 0.62, "amplify_60": 3.0, "amplify_40": 0.0},
}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(
        tmp_path_factory.mktemp(request.param),
        dtype=getattr(torch, request.param),
        tuned=list(MODELS),
    )


def arrays(tensors: Tensors) -> dict[str, numpy.ndarray]:
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


def expected(family: Path, method: str, shared: dict[str, object]) -> Tensors:
    base = tensors_of(family / "base")
    merged = oracle.merge(
        arrays(base),
        [arrays(tensors_of(family / name)) for name in MODELS],
        method,
        list(MODELS.values()),
        shared,
    )
    return {name: torch.from_numpy(merged[name]).to(base[name].dtype) for name in base}


def assert_equal(merged: Tensors, wanted: Tensors) -> None:
    assert merged.keys() == wanted.keys()
    unequal = [name for name in wanted if not torch.equal(merged[name], wanted[name])]
    assert unequal == []


SHARED: list[dict[str, object]] = [
    {},
    {"lambda": 0.8, "normalize": True},
    {"normalize": False, "max_fluctuation": 0.3},
    {"significance": "count", "significance_multiple": 3.5},
    {"significance_multiple": 4.0, "block_significance_multiple": 2.0, "max_fluctuation": 0.02},
]


@pytest.mark.parametrize("shared", SHARED, ids=str)
@pytest.mark.parametrize("method", ["dppa", "dppa_ties", "dp", "owl"])
def test_every_tensor_is_the_oracles(
    family: Path, merge: Merge, method: str, shared: dict[str, object]
) -> None:
    if method == "owl":
        shared = {key: value for key, value in shared.items() if key != "significance"}
    merged = merge(recipe(family, method, MODELS, parameters=shared))
    assert_equal(merged, expected(family, method, shared))


def test_dare_dpa_against_the_oracle(family: Path, merge: Merge) -> None:
    """One model at weight 1: every element is in one partition, and the counts are exact."""
    factors = {90: 0.9, 80: 0.6, 70: 0.3}
    own = {"weight": 1.0, "density": 0.25, **{f"amplify_{r}": f for r, f in factors.items()}}
    merged = merge(recipe(family, "dare_dpa", {"math": own}))
    base, tuned = tensors_of(family / "base"), tensors_of(family / "math")
    rounding = 2.0**-23 if base["model.norm.weight"].dtype == torch.float32 else 2.0**-7
    for name, tensor in base.items():
        start, end, result = (each.float().numpy() for each in (tensor, tuned[name], merged[name]))
        if oracle.classify(name, tensor.shape).linears:
            labels, _ = oracle.check_dare_dpa(start, end, result, 0.25, factors, rounding)
            assert set(numpy.unique(labels)) >= {oracle.PRUNED, 90, 80, 70}
        else:
            whole = torch.from_numpy(start + (end - start)).to(tensor.dtype)
            assert torch.equal(merged[name], whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("dppa", "task_arithmetic"),
        ("dp", "task_arithmetic"),
        ("owl", "task_arithmetic"),
        ("dare_dpa", "task_arithmetic"),
        ("dppa_ties", "ties"),
    ],
)
def test_at_density_one_it_is_mergekits_own_method(
    ours: str, theirs: str, normalize: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(5)
    names = [f"layers.{i}.{kind}.weight" for i in range(3) for kind in ("q", "norm")]
    models = [
        {name: torch.randn(70, 90, generator=generator, dtype=dtype) for name in names}
        for _ in range(4)
    ]
    parameters = {"weight": [0.31, 0.52, -0.2], "density": 1.0, "lambda": 0.9}
    merged = [
        merge_state_dicts(models, method, base=0, parameters={**parameters, "normalize": normalize})
        for method in (ours, theirs)
    ]
    assert_equal(*merged)


def test_without_fluctuation_it_is_mergekits_magnitude_pruning() -> None:
    generator = torch.Generator().manual_seed(6)
    base, tuned = (torch.randn(40, 50, generator=generator) for _ in range(2))
    name = "layers.0.up.weight"
    merged = merge_state_dicts(
        [{name: base, "x": base}, {name: tuned, "x": tuned}],
        "dp",
        base=0,
        parameters={"weight": 1.0, "density": 0.2, "max_fluctuation": 0.0},
    )
    assert torch.equal(merged[name], base + magnitude(tuned - base, 0.2))
    assert torch.equal(merged["x"], base + (tuned - base))


@pytest.mark.parametrize("method", ["dppa", "dppa_ties", "dp", "owl", "dare_dpa"])
def test_state_dicts_merge_as_checkpoints_do(family: Path, merge: Merge, method: str) -> None:
    merged = merge(recipe(family, method, MODELS))
    names = {str(family / name): tensors_of(family / name) for name in ("base", *MODELS)}
    keys = {key for parameters in MODELS.values() for key in parameters}
    if method in ("dp", "owl"):
        keys = {"weight", "density"}
    parameters = {
        key: {
            str(family / name): own.get(key, 0.2 if key == "density" else 1.0)
            for name, own in MODELS.items()
        }
        for key in keys
    }
    in_memory = merge_state_dicts(names, method, base=str(family / "base"), parameters=parameters)
    assert_equal(merged, in_memory)


@pytest.mark.parametrize("name", [None, "layers.0.up.weight", "whatever"])
@pytest.mark.parametrize("method", ["dppa", "dppa_ties", "dp", "owl", "dare_dpa"])
def test_one_tensor_gets_its_plain_density(method: str, name: str | None) -> None:
    generator = torch.Generator().manual_seed(7)
    base, tuned = (torch.randn(40, 50, generator=generator) for _ in range(2))
    merged = merge_tensors(
        [base, tuned],
        method,
        base_index=0,
        name=name,
        parameters={"weight": 1.0, "density": 0.15},
    )
    assert int((merged != base).sum()) == 300


def test_a_named_norm_by_itself_is_dense() -> None:
    base, tuned = torch.zeros(4, 5), torch.ones(4, 5)
    merged = merge_tensors(
        [base, tuned], "dppa", base_index=0, name="layers.0.q_norm.weight", parameters={"weight": 1}
    )
    assert torch.equal(merged, tuned)


def test_inputs_with_strides_or_gradients() -> None:
    generator = torch.Generator().manual_seed(8)
    base, tuned = (torch.randn(30, 20, generator=generator, requires_grad=True) for _ in range(2))
    parameters = {"weight": 1.0, "density": 0.3}
    plain = merge_tensors([base, tuned], "dppa", base_index=0, parameters=parameters)
    turned = merge_tensors(
        [base.t().contiguous().t(), tuned.t().contiguous().t()],
        "dppa",
        base_index=0,
        parameters=parameters,
    )
    assert torch.equal(plain, turned)
    assert not plain.requires_grad


def dare(seed: int, models: dict[str, torch.Tensor], name: str = "layers.0.up.weight") -> Tensors:
    """The pruned deltas of single models under dare_dpa at density 0.2, from a base of zeros."""
    zeros = {name: torch.zeros(60, 50), "x": torch.zeros(1)}
    return {
        model: merge_state_dicts(
            {"base": zeros, model: {name: delta, "x": torch.ones(1)}},
            "dare_dpa",
            base="base",
            parameters={"weight": 1.0, "density": 0.2, "seed": seed},
        )[name]
        for model, delta in models.items()
    }


def test_dare_preserves_the_mean() -> None:
    delta = torch.randn(60, 50, generator=torch.Generator().manual_seed(9))
    seeds = 300
    total = sum(dare(seed, {"math": delta})["math"] / delta for seed in range(seeds))
    mean = total / seeds  # type: ignore[operator]
    deviation = (0.8 / 0.2 / seeds) ** 0.5
    assert (mean - 1).abs().max() < 5 * deviation
    assert abs(float(mean.mean()) - 1) < 1e-3
    assert float(mean.std()) == pytest.approx(deviation, rel=0.1)


def test_dare_draws_anew_for_seed_model_and_tensor() -> None:
    delta = torch.ones(60, 50)
    first = dare(0, {"math": delta, "law": delta})
    masks = [
        first["math"],
        first["law"],
        dare(1, {"math": delta})["math"],
        dare(0, {"math": delta}, "layers.0.down.weight")["math"],
    ]
    for position, one in enumerate(masks):
        for other in masks[position + 1 :]:
            both = int(((one != 0) & (other != 0)).sum())
            assert both == pytest.approx(0.04 * 3000, abs=5 * (0.04 * 0.96 * 3000) ** 0.5)


def test_dare_depends_on_no_order() -> None:
    delta = torch.randn(60, 50, generator=torch.Generator().manual_seed(10))
    name = "layers.0.up.weight"
    base, tuned, other = ({name: each, "x": delta} for each in (delta * 0, delta, delta * 2))
    parameters = {"weight": {"a": 1.0, "b": 0.5}, "density": 0.2}
    one = merge_state_dicts(
        {"base": base, "a": tuned, "b": other}, "dare_dpa", base="base", parameters=parameters
    )
    two = merge_state_dicts(
        {"b": {"x": delta, name: delta * 2}, "a": tuned, "base": base},
        "dare_dpa",
        base="base",
        parameters=parameters,
    )
    assert torch.allclose(one[name], two[name], atol=1e-6)
    assert torch.equal(one[name] != 0, two[name] != 0)


@pytest.mark.parametrize("density", [0.0, 1e-40, 1e-5])
@pytest.mark.parametrize("method", ["dppa", "dppa_ties", "dp", "owl", "dare_dpa"])
def test_a_density_that_keeps_nothing(method: str, density: float) -> None:
    base, tuned = torch.full((4, 5), 0.5), torch.full((4, 5), 1e6)
    merged = merge_tensors(
        [base, tuned], method, base_index=0, parameters={"weight": 1.0, "density": density}
    )
    assert torch.equal(merged, base)


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


def test_one_group_by_itself() -> None:
    base, tuned = torch.zeros(20, 30), torch.randn(20, 30, generator=torch.Generator())
    group = TensorGroup.from_tensors([base, tuned], base_index=0)
    method = get("dppa")
    merged = method.merge_group(group, weight={1: 1.0}, density={1: 0.1})
    assert int((merged != 0).sum()) == 60


def test_a_plan_dies_with_its_tasks(family: Path) -> None:
    MergePlanner._model_arch.cache_clear()
    gc.collect()
    before = len(mergekit_hooks._PLANS)
    planned = tasks(recipe(family, "dppa", MODELS))
    assert len(mergekit_hooks._PLANS) == before + len(planned)
    del planned
    MergePlanner._model_arch.cache_clear()  # mergekit's own cache holds planners
    gc.collect()
    assert len(mergekit_hooks._PLANS) <= before


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
        each for each in gc.get_objects() if isinstance(each, (model_allocation.Allocation, Delta))
    ]


def test_truncated_vocabularies(family: Path, merge: Merge) -> None:
    plain = merge(recipe(family, "dppa", MODELS))
    option = "--unsafe-truncate-embeddings"
    assert_equal(merge(recipe(family, "dppa", MODELS), option, output="truncated"), plain)
