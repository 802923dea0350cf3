"""Slices that move layers or lack a model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import recipe, tensors_of
from commands import RunYaml
from refused_merges import refused


def slices(family: Path, *ranges: tuple[int, int]) -> dict[str, object]:
    content = recipe(family)
    models = content.pop("models")
    assert isinstance(models, list)
    content["slices"] = [
        {
            "sources": [
                {"model": str(family / "base"), "layer_range": list(layers)},
                *({**each, "layer_range": list(layers)} for each in models),
            ]
        }
        for layers in ranges
    ]
    return content


@pytest.mark.parametrize(
    "ranges", [((1, 3),), ((0, 2), (1, 3)), ((2, 3), (0, 2)), ((0, 1), (2, 3))]
)
def test_slices_that_move_layers(
    pristine: Path, tmp_path: Path, run_yaml: RunYaml, ranges: tuple[tuple[int, int], ...]
) -> None:
    sentence = refused(run_yaml(slices(pristine, *ranges)), tmp_path)
    assert sentence.startswith("slices: model.layers.")
    assert not (tmp_path / "out").exists()


def test_slices_in_order_are_the_plain_form(
    pristine: Path, merge: Callable[..., dict[str, torch.Tensor]]
) -> None:
    plain = merge(recipe(pristine))
    sliced = merge(slices(pristine, (0, 2), (2, 3)), output="sliced")
    assert plain.keys() == sliced.keys()
    assert all(torch.equal(sliced[name], tensor) for name, tensor in plain.items())


def test_a_slice_without_the_base(pristine: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    content = slices(pristine, (0, 3))
    content["slices"][0]["sources"].pop(0)  # type: ignore[index]
    sentence = refused(run_yaml(content), tmp_path)
    assert (
        f"The base model {pristine}/base is not among the inputs of default.slices[0]" in sentence
    )


def test_a_model_in_later_slices_only(pristine: Path, tmp_path: Path, run_yaml: RunYaml) -> None:
    content = slices(pristine, (0, 1), (1, 3))
    content["slices"][0]["sources"].pop()  # type: ignore[index]
    sentence = refused(run_yaml(content), tmp_path)
    assert f"{pristine}/law is in a later slice and not in the first" in sentence


def test_a_slice_of_the_base_alone(
    pristine: Path, merge: Callable[..., dict[str, torch.Tensor]]
) -> None:
    content = slices(pristine, (0, 1), (1, 2), (2, 3))
    del content["slices"][1]["sources"][1:]  # type: ignore[index]
    merged, base = merge(content), tensors_of(pristine / "base")
    unmoved = [name for name, tensor in base.items() if torch.equal(merged[name], tensor)]
    assert sorted(unmoved) == sorted(name for name in base if ".layers.1." in name)
