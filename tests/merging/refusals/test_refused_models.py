"""Base models and fine-tuned models that are missing, or given twice."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import recipe
from commands import RunYaml
from refused_merges import refused


def test_no_base_model(pristine: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    content = recipe(pristine)
    del content["base_model"]
    assert "base model, and there is none" in refused(run_yaml(content), tmp_path)


def test_only_the_base_model(pristine: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    content = recipe(pristine, models={"base": {"weight": 1.0}})
    sentence = refused(run_yaml(content), tmp_path)
    assert str(pristine / "base") in sentence
    assert "at least one fine-tuned model" in sentence


@pytest.mark.parametrize("spelling", ["math", "law/../math", "./math/", "link"])
def test_one_model_twice(family: Path, tmp_path: Path, run_yaml: RunYaml, spelling: str) -> None:
    (family / "link").symlink_to(family / "math")
    content = recipe(family)
    twice = f"{family}/{spelling}"
    content["models"].append({"model": twice, "parameters": {"weight": 0.1}})  # type: ignore[attr-defined]
    sentence = refused(run_yaml(content), tmp_path)
    assert sentence.startswith(f"The model {twice} is given twice")


def test_the_base_again_under_another_spelling(
    pristine: Path, tmp_path: Path, run_yaml: RunYaml
) -> None:
    content = recipe(pristine)
    content["models"].append({"model": f"{pristine}/./base", "parameters": {"weight": 0.1}})  # type: ignore[attr-defined]
    assert "or leave it out" in refused(run_yaml(content), tmp_path)


def test_the_base_among_the_models_is_fine(
    pristine: Path, merge: Callable[..., dict[str, torch.Tensor]]
) -> None:
    plain = merge(recipe(pristine))
    content = recipe(pristine)
    content["models"].insert(0, {"model": str(pristine / "base")})  # type: ignore[attr-defined]
    listed = merge(content, output="listed")
    assert all(torch.equal(listed[name], tensor) for name, tensor in plain.items())
