"""Tensors that are missing or quantised, hold NaN, or differ in shape from the base."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import recipe, save_family
from commands import RunYaml
from refused_merges import Q, edit, refused


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_shapes_that_differ(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q] = torch.zeros(40, 32)

    edit(family / "math", widen)
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    for part in (f"{family}/math", Q, "[40, 32]", "[32, 32]"):
        assert part in sentence


def test_vocabularies_that_differ(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    def grow(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = torch.zeros(100, 32)

    edit(family / "math", grow)
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    assert "model.embed_tokens.weight has shape [100, 32]" in sentence
    assert "tokenizer" in sentence


def test_vocabularies_that_the_user_has_truncated(
    family: Path, merge: Callable[..., dict[str, torch.Tensor]]
) -> None:
    plain = merge(recipe(family))

    def grow(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.embed_tokens.weight"
        tensors[name] = torch.cat([tensors[name], torch.zeros(4, 32)])

    edit(family / "math", grow)
    merged = merge(recipe(family), "--unsafe-truncate-embeddings", output="truncated")
    assert all(torch.equal(merged[name], tensor) for name, tensor in plain.items())


def test_a_missing_tensor(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    edit(family / "law", lambda tensors: tensors.pop(Q))
    sentence = f"{family}/law: 1 tensor that mergekit reads is missing: {Q}."
    assert refused(run_yaml(recipe(family)), tmp_path) == sentence
    edit(family / "law", lambda tensors: tensors.pop("model.norm.weight"))
    sentence = f"{family}/law: 2 tensors that mergekit reads are missing, such as {Q}."
    assert refused(run_yaml(recipe(family)), tmp_path) == sentence


@pytest.mark.parametrize("model", ["base", "math", "law"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [Q, "model.norm.weight", "model.embed_tokens.weight"])
def test_nan_or_infinity_in_a_checkpoint(
    family: Path, tmp_path: Path, run_yaml: RunYaml, model: str, value: float, name: str
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[7] = value

    edit(family / model, spoil)
    before = digest(family)
    sentence = refused(run_yaml(recipe(family)), tmp_path)
    assert sentence == f"{family}/{model}: tensor {name} holds NaN or infinity."
    assert digest(family) == before


@pytest.mark.parametrize("method", ["dp", "owl", "dppa_ties", "dare_dpa"])
def test_nan_under_every_method(
    family: Path, tmp_path: Path, run_yaml: RunYaml, method: str
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q].view(-1)[7] = math.nan

    edit(family / "law", spoil)
    assert f"tensor {Q} holds NaN" in refused(run_yaml(recipe(family, method)), tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_experts(tmp_path: Path, run_yaml: RunYaml, dtype: torch.dtype) -> None:
    family = save_family(tmp_path / "experts", "mixtral")

    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if ".experts." in name:
                tensors[name] = (tensors[name] * 1000).to(dtype)

    edit(family / "law", quantise)
    assert "is quantised" in refused(run_yaml(recipe(family, dtype="bfloat16")), tmp_path)


def test_quantised_tensors_that_nothing_uses(
    tmp_path: Path, run_yaml: RunYaml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPPA_MERGEKIT_ALLOW_LOSS", "1")
    family = save_family(tmp_path / "experts", "mixtral")
    unused = torch.ones(4, 4, dtype=torch.int8)
    edit(family / "law", lambda tensors: tensors.update({"unused.scale.weight": unused}))
    assert run_yaml(recipe(family)).exit_code == 0


def test_quantised_weights(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q] = (tensors[Q] * 1000).to(torch.int8)

    edit(family / "math", quantise)
    sentence = refused(run_yaml(recipe(family, dtype="bfloat16")), tmp_path)
    assert f"{family}/math: tensor {Q} is quantised (I8)" in sentence


def test_a_cast_that_overflows_on_reading(family: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q].view(-1)[3] = 1e6

    edit(family / "math", enlarge)
    sentence = refused(run_yaml(recipe(family, dtype="float16")), tmp_path)
    assert f"{family}/math: tensor {Q} holds NaN or infinity" in sentence
