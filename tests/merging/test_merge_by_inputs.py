"""Merges by inputs through mergekit, against the oracle's solution of the normal equations."""

import gc
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from activation_files import (
    draw_moments,
    inputs_first,
    linears_of,
    read_moments,
    write_moments,
)
from checkpoints import recipe, save_family, stack_experts, tensors_of, unequal
from commands import Merge
from mergekit.merge_methods import merge_state_dicts, merge_tensors
from numpy.typing import NDArray
from regression_oracle import regress
from safetensors.torch import load_file, save_file

from dppa_mergekit import method_table
from dppa_mergekit.combination import input_regression, output_factor
from dppa_mergekit.moments import delta_moment

Array = NDArray[np.float64]

KEPT = {"math": {"density": 0.3, "amplify_90": 2.0}, "law": {"density": 0.2, "weight": 0.5}}


@pytest.fixture(scope="session", params=["llama_untied", "gpt2"])
def family_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("by inputs") / request.param, request.param)


def expected(
    folder: Path,
    parameters: Mapping[str, Mapping[str, object]],
    moments_of: Callable[[str, str, Array], Array],
    heads: tuple[str, ...] = (),
    alone: Mapping[str, Mapping[str, Array]] | None = None,
) -> dict[str, Array]:
    """The oracle's merge: the single models' amplified deltas, combined by inputs.

    `moments_of` takes a model, a tensor, and the model's whole delta, (outputs, inputs). `alone`:
    model -> it alone on the base, pruned and amplified; the oracle's `dppa` if not given.
    """
    base = {name: tensor.numpy() for name, tensor in tensors_of(folder / "base").items()}
    tuned = {
        model: {name: tensor.numpy() for name, tensor in tensors_of(folder / model).items()}
        for model in parameters
    }
    alone = alone or {
        model: oracle.merge(base, [tuned[model]], "dppa", [{**own, "weight": 1.0}])
        for model, own in parameters.items()
    }
    weights = [float(own.get("weight", 1.0)) for own in parameters.values()]  # type: ignore[arg-type]
    merged = {}
    for name, stored in base.items():
        deltas = [(alone[model][name] - stored).astype(np.float64) for model in parameters]
        if not oracle.classify(name, stored.shape).linears and name not in heads:
            mean = sum(w * delta for w, delta in zip(weights, deltas, strict=True)) / sum(weights)
            merged[name] = stored + mean
            continue
        flipped = inputs_first(folder.name) and name not in heads
        order = (1, 0) if flipped else (0, 1)
        merged[name] = stored.astype(np.float64)
        # Stacked experts are linears of their own.
        for expert in [()] if stored.ndim == 2 else range(len(stored)):
            whole = [(tuned[model][name] - stored).astype(np.float64)[expert] for model in tuned]
            moments = [
                moments_of(model, name, delta.transpose(order))
                for model, delta in zip(tuned, whole, strict=True)
            ]
            solved = regress(
                stored.astype(np.float64)[expert].transpose(order),
                [delta[expert].transpose(order) for delta in deltas],
                moments,
                weights,
            )
            merged[name][expert] = solved.transpose(order)
    return merged


def alone_by(method: str, folder: Path, merge: Merge) -> dict[str, dict[str, Array]] | None:
    """Every model alone on the base by a weighted sum, whose bytes other tests hold."""
    if method == "dppa_regmean":
        return None  # by the oracle
    of_models = {
        model: merge(recipe(folder, "dare_dpa", {model: {**own, "weight": 1.0}}), output=model)
        for model, own in KEPT.items()
    }
    return {
        model: {name: tensor.numpy() for name, tensor in tensors.items()}
        for model, tensors in of_models.items()
    }


def assert_close(merged: Mapping[str, torch.Tensor], wanted: Mapping[str, Array]) -> None:
    assert merged.keys() == wanted.keys()
    for name, tensor in merged.items():
        np.testing.assert_allclose(
            tensor.double().numpy(), wanted[name], rtol=0, atol=2e-6, err_msg=name
        )


def heads_of(folder: Path) -> tuple[str, ...]:
    return ("lm_head.weight",) if folder.name == "llama_untied" else ()


METHODS = ["dppa_regmean", "dare_regmean"]


@pytest.mark.parametrize("method", METHODS)
def test_data_free_merges_equal_the_oracle(method: str, family_of: Path, merge: Merge) -> None:
    merged = merge(recipe(family_of, method, KEPT, parameters={"amplify": "none"}))
    wanted = expected(
        family_of,
        KEPT,
        lambda model, name, delta: delta.T @ delta,
        heads_of(family_of),
        alone_by(method, family_of, merge),
    )
    assert_close(merged, wanted)


@pytest.mark.parametrize("method", METHODS)
def test_stacked_experts_are_linears_of_their_own(
    method: str, tmp_path: Path, merge: Merge
) -> None:
    family = save_family(tmp_path / "mixtral", "mixtral")
    for model in ("base", *KEPT):
        path = family / model / "model.safetensors"
        save_file(stack_experts(load_file(path)), path, {"format": "pt"})
    merged = merge(recipe(family, method, KEPT, parameters={"amplify": "none"}))
    wanted = expected(
        family,
        KEPT,
        lambda model, name, delta: delta.T @ delta,
        ("lm_head.weight",),
        alone_by(method, family, merge),
    )
    assert any(tensor.ndim == 3 for tensor in merged.values())
    assert_close(merged, wanted)


@pytest.mark.parametrize("method", METHODS)
def test_observed_merges_equal_the_oracle(
    method: str, family_of: Path, merge: Merge, tmp_path: Path
) -> None:
    heads = heads_of(family_of)
    drawn = {model: draw_moments(family_of, model, seed, heads) for seed, model in enumerate(KEPT)}
    models = {
        model: {
            **own,
            "activations": write_moments(
                tmp_path / f"{model}.safetensors", family_of, model, drawn[model]
            ),
        }
        for model, own in KEPT.items()
    }
    stored = {model: read_moments(Path(str(own["activations"]))) for model, own in models.items()}
    for model, moments in drawn.items():
        for name, moment in moments.items():
            # float16 holds the eigenvectors to three digits.
            largest = np.abs(moment).max()
            np.testing.assert_allclose(stored[model][name], moment, atol=3e-3 * largest)
    content = recipe(family_of, method, models, parameters={"amplify": "none"})
    wanted = expected(
        family_of,
        KEPT,
        lambda model, name, delta: stored[model][name],
        heads,
        alone_by(method, family_of, merge),
    )
    assert_close(merge(content), wanted)


def test_automatic_factors_restore_outputs(
    family: Path, merge: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pruned delta's outputs are as large as the whole delta's."""
    monkeypatch.setattr(output_factor, "DIRECTIONS", 1000)
    models = {"math": {"density": 0.3}, "law": {"density": 0.3, "amplify_90": 1.5}}
    base, math = (tensors_of(family / name) for name in ("base", "math"))
    alone = merge(recipe(family, "dppa", {"math": {"density": 0.3, "weight": 1.0}}), output="alone")
    factors = {}
    for name in linears_of(family / "math"):
        whole, kept = ((tensors[name] - base[name]).double().numpy() for tensors in (math, alone))
        moment = whole.T @ whole
        sizes = [np.trace(delta @ moment @ delta.T) for delta in (whole, kept)]
        factors[name] = float(np.sqrt(sizes[0] / sizes[1]))
    found = merge(
        recipe(family, "dppa_regmean", models, parameters={"amplify": "auto"}), output="auto"
    )
    by_filters = [{"filter": name, "value": factor} for name, factor in factors.items()]
    rates = [f"amplify_{rate}" for rate in (90, 80, 70)]
    models["math"] = {"density": 0.3, **{rate: [*by_filters, {"value": 1.0}] for rate in rates}}
    wanted = merge(recipe(family, "dppa_regmean", models), output="given")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=2e-6, msg=name)
    assert max(factors.values()) > 1.05
    assert min(factors.values()) >= 1


@pytest.mark.parametrize("method", ["dppa", "dare_dpa"])
def test_one_model_alone_is_the_sum_bit_for_bit(method: str, bfloat16: Path, merge: Merge) -> None:
    own = {"math": {"density": 0.3, "weight": 1.0, "amplify_90": 2.0, "amplify_dense": 0.5}}
    summed = merge(recipe(bfloat16, method, own), output="summed")
    by_inputs = {"dppa": "dppa_regmean", "dare_dpa": "dare_regmean"}[method]
    assert not unequal(merge(recipe(bfloat16, by_inputs, own), output="solved"), summed)


def test_the_weight_need_not_be_given(family: Path, merge: Merge) -> None:
    kept = {"math": {"density": 0.3}, "law": {"density": 0.2}}
    given = {model: {**own, "weight": 1.0} for model, own in kept.items()}
    left_out = merge(recipe(family, "dppa_regmean", kept), output="left out")
    assert not unequal(merge(recipe(family, "dppa_regmean", given), output="given"), left_out)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_threads_order_and_repetition_change_no_byte(
    method: str,
    dtype: str,
    tmp_path: Path,
    merge: Merge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Threads share the chunks of a tensor, and the pieces of a product: there must be several.
    monkeypatch.setattr("dppa_mergekit.deltas.delta.CHUNK", 1 << 14)
    monkeypatch.setattr("dppa_mergekit.deltas.products.ROWS", 16)
    family = save_family(
        tmp_path, dtype=getattr(torch, dtype), hidden_size=192, intermediate_size=520,
        num_hidden_layers=1, tuned=("math", "law", "bank"),
    )  # fmt: skip
    models = {model: {"density": 0.3} for model in ("math", "law", "bank")}
    found = []
    for output, threads, order in (
        ("one", 1, models),
        ("again", 1, models),
        ("two", 2, models),
        ("back", 2, dict(reversed(models.items()))),
    ):
        torch.set_num_threads(threads)
        merge(recipe(family, method, order), output=output)
        found.append((tmp_path / output / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    assert found[1] == found[2]
    assert found[2] == found[3]


def test_state_dicts_equal_the_command(family_of: Path, merge: Merge) -> None:
    by_command = merge(recipe(family_of, "dppa_regmean", KEPT))
    tensors = {model: tensors_of(family_of / model) for model in ("base", *KEPT)}
    parameters = {
        "density": {model: own["density"] for model, own in KEPT.items()},
        "weight": {model: own.get("weight", 1.0) for model, own in KEPT.items()},
        "amplify_90": {model: own.get("amplify_90", 1.0) for model, own in KEPT.items()},
    }
    merged = merge_state_dicts(tensors, "dppa_regmean", parameters=parameters, base="base")
    assert not unequal(merged, by_command)


def test_a_tied_head_stays_an_embedding(family: Path, merge: Merge) -> None:
    by_command = merge(recipe(family, "dppa_regmean", KEPT))
    tensors = {model: tensors_of(family / model) for model in ("base", *KEPT)}
    for of_model in tensors.values():
        of_model["lm_head.weight"] = of_model["model.embed_tokens.weight"]
    parameters = {
        "density": {model: own["density"] for model, own in KEPT.items()},
        "weight": {model: own.get("weight", 1.0) for model, own in KEPT.items()},
        "amplify_90": {model: own.get("amplify_90", 1.0) for model, own in KEPT.items()},
    }
    merged = merge_state_dicts(tensors, "dppa_regmean", parameters=parameters, base="base")
    assert torch.equal(merged.pop("lm_head.weight"), merged["model.embed_tokens.weight"])
    assert not unequal(merged, by_command)


def test_one_tensor_without_its_model() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(6, 4, generator=generator) for _ in range(3)]
    merged = merge_tensors(
        tensors, "dppa_regmean", parameters={"density": [1.0, 1.0]}, base_index=0
    )
    deltas = [(tensor - tensors[0]).double().numpy() for tensor in tensors[1:]]
    wanted = regress(
        tensors[0].double().numpy(), deltas, [delta.T @ delta for delta in deltas], [1.0, 1.0]
    )
    np.testing.assert_allclose(merged.double().numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("method", method_table.names())
@pytest.mark.parametrize("shape", [(7,), (3, 4, 5), (2, 3, 4, 5), (0, 3), ()])
def test_tensors_that_are_no_matrices(method: str, shape: tuple[int, ...]) -> None:
    """By inputs they are averaged; every other method knew them before."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator) for _ in range(3)]
    parameters = {"density": [1.0, 1.0], "weight": [0.5, 0.5]}
    merged = merge_tensors(tensors, method, parameters=parameters, base_index=0)
    assert merged.shape == shape
    if method_table.is_by_inputs(method):
        torch.testing.assert_close(merged, (tensors[1] + tensors[2]) / 2)


def test_a_tied_head_that_is_stored_stays_an_embedding(tmp_path: Path, merge: Merge) -> None:
    family = save_family(tmp_path / "family")
    for model in ("base", *KEPT):
        path = family / model / "model.safetensors"
        tensors = load_file(path)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, path, {"format": "pt"})
    merged = merge(recipe(family, "dppa_regmean", KEPT))
    assert torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])


def test_an_ended_merge_keeps_nothing(family: Path, merge: Merge, tmp_path: Path) -> None:
    models = {
        model: {
            "activations": write_moments(
                tmp_path / f"{model}.safetensors", family, model, draw_moments(family, model, 0)
            )
        }
        for model in ("math", "law")
    }
    held = []
    for output in ("one", "two", "three"):
        merge(recipe(family, "dppa_regmean", models), output=output)
        gc.collect()
        held.append((len(input_regression._SOLVED), len(delta_moment._KNOWN)))
    assert held == [(0, 0)] * 3
