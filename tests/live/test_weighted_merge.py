"""A whole merge in memory, against what mergekit's own command writes for the same weights."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import recipe, save_family
from commands import Merge

from dppa_mergekit.live import weighted_merge
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.recipes.recipe import Recipe

WEIGHTS = [(0.6, 0.5), (1.1, 0.0), (-0.3, 0.2)]


def check(
    folder: Path,
    tmp_path: Path,
    merge: Merge,
    method: str,
    of_models: dict[str, object],
    options: Sequence[str] = (),
    candidates: Sequence[tuple[float, float]] = WEIGHTS,
    **changes: object,
) -> None:
    models = {"math": {"weight": 0.4, **of_models}, "law": {"weight": 0.3, **of_models}}
    whole = Recipe(recipe(folder, method, models, **changes))
    resident = WeightedMerge.load(whole, tmp_path)
    # The first once more at the end: nothing has drifted.
    for weights in (*candidates, candidates[0]):
        named = dict(zip(whole.fine_tuned(), weights, strict=True))
        resident.set_weights(named)
        written = merge(whole.with_weights(named).content, *options)
        live = resident.model.state_dict()
        assert set(written) <= set(live)
        for name, tensor in written.items():
            assert isinstance(tensor, torch.Tensor)
            assert torch.equal(live[name], tensor), (name, weights)
    assert not list(tmp_path.glob(".dppa-*"))


AMPLIFIED: dict[str, object] = {"density": 0.2, "amplify_90": 1.7, "amplify_80": 0.6}


@pytest.mark.parametrize("architecture", ["llama", "llama_untied", "qwen3", "gpt2", "mixtral"])
def test_architectures(architecture: str, tmp_path: Path, merge: Merge) -> None:
    check(save_family(tmp_path, architecture), tmp_path, merge, "dppa", AMPLIFIED)


@pytest.mark.parametrize("method", ["dppa_ties", "dp", "owl", "dare_dpa"])
def test_methods(method: str, tmp_path: Path, merge: Merge) -> None:
    family = save_family(tmp_path, dtype=torch.bfloat16)
    check(family, tmp_path, merge, method, {"density": 0.3})
    shared = {"lambda": 0.8, "normalize": True}
    check(family, tmp_path, merge, method, {"density": 0.3}, parameters=shared)


@pytest.mark.parametrize("architecture", ["llama_untied", "gpt2", "mixtral"])
@pytest.mark.parametrize("method", ["dppa_regmean", "dare_regmean"])
def test_combinations_by_inputs(
    method: str, architecture: str, tmp_path: Path, merge: Merge
) -> None:
    family = save_family(tmp_path, architecture)
    candidates = [(0.6, 0.5), (1.1, 0.0), (0.1, 0.9)]
    check(family, tmp_path, merge, method, {"density": 0.3}, candidates=candidates)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_mergekits_own_methods(method: str, tmp_path: Path, merge: Merge) -> None:
    of_models: dict[str, object] = {} if method == "task_arithmetic" else {"density": 0.3}
    check(save_family(tmp_path), tmp_path, merge, method, of_models)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_mergekits_draws_are_those_of_a_seed(method: str, tmp_path: Path, merge: Merge) -> None:
    family = save_family(tmp_path, dtype=torch.bfloat16)
    check(family, tmp_path, merge, method, {"density": 0.3}, options=["--random-seed", "0"])


def test_mergekit_merges_once_for_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"math": {"weight": 0.4}, "law": {"weight": 0.3}}
    whole = Recipe(recipe(save_family(tmp_path), "task_arithmetic", models))
    merges: list[dict[str, float]] = []

    def counted(given: Recipe, *more: Any) -> AbstractContextManager[Path]:
        merges.append(given.weights())
        return merge_into_folder(given, *more)

    monkeypatch.setattr(weighted_merge, "merge_into_folder", counted)
    resident = WeightedMerge.load(whole, tmp_path)
    first, second = whole.weights(), dict.fromkeys(whole.fine_tuned(), 0.7)
    for weights in (first, second, second, first):
        resident.set_weights(weights)
    assert merges == [first, second, first]


def test_recipes_that_cast(tmp_path: Path, merge: Merge) -> None:
    check(save_family(tmp_path), tmp_path, merge, "dppa", AMPLIFIED, dtype="bfloat16")
    double = save_family(tmp_path / "double", dtype=torch.float64)
    check(double, tmp_path, merge, "dppa_ties", AMPLIFIED, out_dtype="float16")
