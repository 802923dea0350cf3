"""Threads, repetition and the order of models change no byte."""

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import fine_tune, new_model, recipe, save_family, unequal
from commands import Merge
from oracle_merges import METHODS, MODELS, Tensors


@pytest.fixture(scope="session")
def wide_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linears of several chunks of 2^15 elements."""
    return save_family(
        tmp_path_factory.mktemp("wide"),
        dtype=torch.bfloat16,
        hidden_size=256,
        intermediate_size=1040,
        num_hidden_layers=2,
    )


@pytest.mark.parametrize("method", METHODS)
def test_threads_and_repetition_change_no_byte(
    method: str,
    wide_family: Path,
    tmp_path: Path,
    merge: Merge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Threads share the chunks of a tensor: the linears must have several.
    monkeypatch.setattr("dppa_mergekit.deltas.delta.CHUNK", 1 << 15)
    content = recipe(wide_family, method, MODELS)
    found = []
    for output, threads in (("one", 1), ("again", 1), ("two", 2)):
        torch.set_num_threads(threads)
        merge(content, output=output)
        found.append((tmp_path / output / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    assert found[1] == found[2]


@pytest.mark.parametrize("method", METHODS)
def test_order_of_models_moves_no_choice(method: str, family: Path, merge: Merge) -> None:
    models = {"math": {**MODELS["math"], "weight": 1.0}, "law": {**MODELS["law"], "weight": 0.0}}
    backwards = dict(reversed(models.items()))
    forth = merge(recipe(family, method, models), output="forth")
    assert not unequal(merge(recipe(family, method, backwards), output="back"), forth)


def test_seed_decides_the_random_partitions(family: Path, merge: Merge) -> None:
    def merged(seed: int, output: str) -> Tensors:
        return merge(recipe(family, "dare_dpa", MODELS, parameters={"seed": seed}), output=output)

    assert unequal(merged(0, "zero"), merged(1, "one"))
    assert not unequal(merged(1, "again"), merged(1, "more"))


def test_a_model_is_tuned_in_every_linear_by_these_builders() -> None:
    """What the tests above rest on: no delta is zero throughout, and some elements are."""
    base = new_model("llama", 0)
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    for name, parameter in fine_tune(base, 1).named_parameters():
        moved = np.count_nonzero((parameter.detach() - before[name]).numpy())
        assert 0 < moved < parameter.numel()
