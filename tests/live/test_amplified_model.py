"""Weights of the model in memory, against those that mergekit's own command writes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from checkpoints import recipe, save_family, tensors_of
from commands import Merge

from dppa_mergekit.deltas.delta import Delta
from dppa_mergekit.deltas.kernel import library, passes_over
from dppa_mergekit.live.amplified_model import AmplifiedModel
from dppa_mergekit.live.loading import load_model
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.recipes.recipe import Recipe, Setting

FACTORS: Sequence[Mapping[int, Setting]] = [
    {90: 2.1, 80: 1.4},
    {90: 1.7, 80: 0.0},
    {90: 1.0, 80: 1.0},
    {90: 0.3, 80: 2.9},
]


def check(
    folder: Path,
    tmp_path: Path,
    merge: Merge,
    method: str = "dppa",
    factors: Sequence[Mapping[int, Setting]] = FACTORS,
    live_dtype: torch.dtype | None = None,
    tune_dense: bool = False,
    parameters: Mapping[str, object] | None = None,
    **changes: object,
) -> AmplifiedModel:
    """Set one after the other, and compare every tensor with a merge by mergekit-yaml."""
    models = {
        "law": {"weight": 0.4, "density": 0.5},
        "math": {"weight": 0.7, "density": 0.2, **(parameters or {})},
    }
    alone = Recipe(recipe(folder, method, models, **changes)).with_only(str(folder / "math"))
    resident = AmplifiedModel.load(
        alone, tmp_path, placement=Placement(dtype=live_dtype), tune_dense=tune_dense
    )
    # The first once more at the end: nothing has drifted.
    for turn, of_turn in enumerate([*factors, factors[0]]):
        dense = 0.5 + turn if tune_dense else None
        resident.set_factors(of_turn, dense)
        values: dict[str, object] = {f"amplify_{rate}": value for rate, value in of_turn.items()}
        if dense is not None:
            values["amplify_dense"] = dense
        written = merge(alone.with_parameters(str(folder / "math"), values).content)
        live = resident.model.state_dict()
        assert set(written) <= set(live)
        for name, tensor in written.items():
            assert isinstance(tensor, torch.Tensor)
            assert torch.equal(live[name], tensor.to(live[name].dtype)), (name, of_turn)
            assert live_dtype is not None or live[name].dtype == tensor.dtype
    return resident


@pytest.mark.parametrize(
    "architecture", ["llama", "llama_untied", "qwen3", "gpt2", "mixtral", "t5"]
)
def test_architectures(architecture: str, tmp_path: Path, merge: Merge) -> None:
    check(save_family(tmp_path, architecture), tmp_path, merge)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_factors_by_layer(layers: int, tmp_path: Path, merge: Merge) -> None:
    folder = save_family(tmp_path, num_hidden_layers=layers)
    # Two knots, between which mergekit interpolates, and one for each of five layers.
    factors = [{90: [2.1, 0.7], 80: 1.4}, {90: 1.3, 80: [0.1, 0.7, 1.9, 1.1, 0.3]}]
    resident = check(folder, tmp_path, merge, factors=factors)
    assert resident.layers == layers


@pytest.mark.parametrize("method", ["dppa_ties", "dare_dpa"])
def test_methods(method: str, tmp_path: Path, merge: Merge) -> None:
    check(save_family(tmp_path, dtype=torch.bfloat16), tmp_path, merge, method)


@pytest.mark.parametrize(
    ("stored", "changes", "live"),
    [
        (torch.bfloat16, {}, torch.float32),
        (torch.float16, {}, None),
        (torch.float64, {}, None),
        (torch.float32, {"dtype": "bfloat16"}, None),
        (torch.float32, {"out_dtype": "float16"}, None),
        (torch.bfloat16, {"dtype": "float32", "out_dtype": "float16"}, torch.float32),
    ],
)
def test_dtypes(
    stored: torch.dtype,
    changes: dict[str, object],
    live: torch.dtype | None,
    tmp_path: Path,
    merge: Merge,
) -> None:
    check(save_family(tmp_path, dtype=stored), tmp_path, merge, live_dtype=live, **changes)


def test_without_compiled_passes(
    tmp_path: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_family(tmp_path, dtype=torch.bfloat16)
    monkeypatch.setattr(library, "load", lambda: None)
    ones = torch.ones(8, dtype=torch.bfloat16)
    assert passes_over(Delta(ones, ones)) is None
    check(folder, tmp_path, merge)


def test_a_density_of_its_own_for_some_tensors(tmp_path: Path, merge: Merge) -> None:
    density = [{"filter": "mlp", "value": [0.05, 0.35]}, {"value": 1.0}]
    factors = [
        {rate: 1 + rate / 50 for rate in range(0, 100, 10)},
        {rate: 2 - rate / 100 for rate in range(0, 100, 10)},
    ]
    resident = check(
        save_family(tmp_path), tmp_path, merge, factors=factors, parameters={"density": density}
    )
    assert resident.rates == (90, 80, 70, 60, 50, 40, 30, 20, 10, 0)


def test_dense_tensors(tmp_path: Path, merge: Merge) -> None:
    check(save_family(tmp_path), tmp_path, merge, factors=FACTORS[:2], tune_dense=True)


def test_several_chunks(tmp_path: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dppa_mergekit.deltas.delta.CHUNK", 192)
    check(save_family(tmp_path, dtype=torch.bfloat16), tmp_path, merge)


def test_a_device_with_other_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A merge is made on the CPU, in its chunks; the model may then live where chunks are longer.
    family = save_family(tmp_path)
    models = {"math": {"weight": 0.7, "density": 0.2}}
    alone = Recipe(recipe(family, "dppa", models)).with_only(str(family / "math"))
    with monkeypatch.context() as on_cpu:
        on_cpu.setattr("dppa_mergekit.deltas.delta.CHUNK", 192)
        counted = AmplifiedModel.load(alone, tmp_path)
    monkeypatch.setattr("dppa_mergekit.live.kept_elements.passes_over", lambda delta: None)
    whole = AmplifiedModel.load(alone, tmp_path)
    for resident in (counted, whole):
        resident.set_factors({90: 2.1, 80: 1.4})
    expected = whole.model.state_dict()
    for name, tensor in counted.model.state_dict().items():
        assert torch.equal(tensor, expected[name])
    for left, right in zip(counted._linears, whole._linears, strict=True):
        gradient = torch.randn(left.live.numel(), generator=torch.Generator().manual_seed(0))
        for mine, other in zip(left.partitions, right.partitions, strict=True):
            assert mine.gradient(gradient) == pytest.approx(other.gradient(gradient), abs=1e-6)


def test_random_methods_draw_what_seed_0_of_mergekit_draws(tmp_path: Path, merge: Merge) -> None:
    save_family(tmp_path)
    models = {name: {"weight": 0.5, "density": 0.4} for name in ("law", "math")}
    content = recipe(tmp_path, "dare_linear", models)
    expected = merge(content, "--random-seed", "0")
    torch.manual_seed(7)
    state = torch.get_rng_state()
    with merge_into_folder(Recipe(content), tmp_path) as folder:
        found = tensors_of(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_head_gets_whole_states(tmp_path: Path) -> None:
    folder = save_family(tmp_path, tuned=())
    model, _ = load_model(folder / "base", Placement(dtype=torch.bfloat16))
    model.requires_grad_(False)
    whole: list[bool] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _, given, __: whole.append(given[0].is_contiguous()))
    prompts = torch.arange(10).view(2, 5)
    written = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=2, do_sample=False
    )
    assert written.shape == (2, 7)
    assert whole == [True, True]
