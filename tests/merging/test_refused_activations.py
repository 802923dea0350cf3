"""Activations that cannot be used end a merge by inputs before its folder is made."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from activation_files import draw_moments, write_moments
from check_command import of_recipe, said
from checkpoints import recipe, tensors_of
from commands import RunYaml
from mergekit.merge_methods.api import merge_state_dicts
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dppa_mergekit.errors import CheckpointError
from dppa_mergekit.merging import model_allocation

ONE = torch.tensor([1])


@pytest.fixture
def observed(family: Path, tmp_path: Path) -> dict[str, dict[str, object]]:
    """Models with activations, by name."""
    return {
        model: {
            "density": 0.3,
            "activations": write_moments(
                tmp_path / f"{model}.safetensors",
                family,
                model,
                draw_moments(family, model, seed),
            ),
        }
        for seed, model in enumerate(("math", "law"))
    }


def refusal(run_yaml: RunYaml, content: Mapping[str, object], tmp_path: Path) -> str:
    """The message of a merge that ends before its folder is made."""
    result = run_yaml(content)
    assert result.exit_code != 0
    assert not (tmp_path / "out").exists()
    return result.output


def test_activations_of_some_models_only(
    observed: dict[str, dict[str, object]], family: Path, run_yaml: RunYaml, tmp_path: Path
) -> None:
    del observed["law"]["activations"]
    said = refusal(run_yaml, recipe(family, "dppa_regmean", observed), tmp_path)
    assert "law" in said
    assert "allowed are activations for all models, or for none" in said


def test_a_file_that_is_missing(family: Path, run_yaml: RunYaml, tmp_path: Path) -> None:
    models = {model: {"activations": "nowhere.safetensors"} for model in ("math", "law")}
    said = refusal(run_yaml, recipe(family, "dppa_regmean", models), tmp_path)
    assert "there is no file nowhere.safetensors" in said


def test_a_file_of_another_model(
    observed: dict[str, dict[str, object]], family: Path, run_yaml: RunYaml, tmp_path: Path
) -> None:
    observed["law"]["activations"] = observed["math"]["activations"]
    said = refusal(run_yaml, recipe(family, "dppa_regmean", observed), tmp_path)
    assert f"math.safetensors was observed in {family / 'math'}" in said
    assert "law has other weights, or was trained since" in said


def test_a_file_that_is_something_else(
    observed: dict[str, dict[str, object]], family: Path, run_yaml: RunYaml, tmp_path: Path
) -> None:
    observed["law"]["activations"] = str(family / "law" / "model.safetensors")
    said = refusal(run_yaml, recipe(family, "dppa_regmean", observed), tmp_path)
    assert "was not written by this version's mergekit-dppa activations" in said


def test_a_truncated_file(
    observed: dict[str, dict[str, object]], family: Path, run_yaml: RunYaml, tmp_path: Path
) -> None:
    path = Path(str(observed["law"]["activations"]))
    path.write_bytes(path.read_bytes()[:-100])
    said = refusal(run_yaml, recipe(family, "dppa_regmean", observed), tmp_path)
    assert f"{path} is damaged" in said


@pytest.mark.parametrize(
    "change",
    [
        *(lambda rest, value=value: rest.index_fill(0, ONE, value) for value in (math.nan, -1.0)),
        *(
            lambda rest, dtype=dtype: rest.to(dtype)
            for dtype in (torch.float64, torch.float8_e4m3fn, torch.complex64)
        ),
        lambda rest: rest[0].clone(),
    ],
    ids=["nan", "negative", "float64", "float8", "complex", "scalar"],
)
def test_moments_that_cannot_be(
    change: Callable[[torch.Tensor], torch.Tensor],
    observed: dict[str, dict[str, object]],
    family: Path,
    run_yaml: RunYaml,
    tmp_path: Path,
) -> None:
    path = Path(str(observed["law"]["activations"]))
    spoil(path, lambda tensors: tensors.update({"0.rest": change(tensors["0.rest"])}))
    said = refusal(run_yaml, recipe(family, "dppa_regmean", observed), tmp_path)
    assert f"{path} is damaged: the moments of" in said


def test_a_byte_that_has_changed(
    observed: dict[str, dict[str, object]], family: Path, run_yaml: RunYaml, tmp_path: Path
) -> None:
    path = Path(str(observed["law"]["activations"]))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said = refusal(run_yaml, recipe(family, "dppa_regmean", observed), tmp_path)
    assert f"{path} is damaged: its tensors are not those that were written." in said


def test_moments_of_another_number_of_inputs(
    observed: dict[str, dict[str, object]], family: Path, run_yaml: RunYaml, tmp_path: Path
) -> None:
    path = Path(str(observed["law"]["activations"]))

    def halve(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("vectors", "rest"):
            tensors[f"0.{part}"] = tensors[f"0.{part}"][:16].contiguous()

    def unsigned(known: str) -> str:
        return re.sub(r'"content_sha256":"\w+"', '"content_sha256":null', known)

    spoil(path, halve, unsigned)
    said = refusal(run_yaml, recipe(family, "dppa_regmean", observed), tmp_path)
    assert f"{path} has 16 inputs for" in said


def test_a_file_without_linears(
    observed: dict[str, dict[str, object]], family: Path, run_yaml: RunYaml, tmp_path: Path
) -> None:
    path = Path(str(observed["law"]["activations"]))
    nothing = '"linears":[],"others":['
    spoil(path, lambda tensors: None, lambda known: known.replace('"linears":[', nothing))
    said = refusal(run_yaml, recipe(family, "dppa_regmean", observed), tmp_path)
    assert f"{path} is damaged: it has no linears" in said


def rename_observed(path: Path) -> None:
    """Give the linears of a file other names than the model's tensors have."""
    spoil(path, lambda tensors: None, lambda known: known.replace('"model.layers', '"layers'))


def test_inputs_of_tensors_with_other_names(
    observed: dict[str, dict[str, object]],
    family: Path,
    run_yaml: RunYaml,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Known when all tensors are planned: the folder is there, and no weight is read."""
    path = Path(str(observed["law"]["activations"]))
    rename_observed(path)
    content = recipe(family, "dppa_regmean", observed)
    (error,) = said(of_recipe(tmp_path, content), "error")
    sentence = f"activations: {path} has the inputs of layers.0"
    assert sentence in error
    monkeypatch.setattr(model_allocation, "measure", None)
    result = run_yaml(content)
    assert result.exit_code != 0
    assert sentence in result.output
    assert "none of which is merged here" in result.output
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("is_whole", [True, False])
def test_inputs_of_tensors_with_other_names_in_memory(
    is_whole: bool, observed: dict[str, dict[str, object]], family: Path
) -> None:
    paths = {model: str(given["activations"]) for model, given in observed.items()}
    models = {model: tensors_of(family / model) for model in ("base", *paths)}
    parameters = {"density": 0.3, "activations": paths}
    merge_state_dicts(models, "dppa_regmean", parameters=parameters, base="base")
    for path in paths.values():
        rename_observed(Path(path))
    if is_whole:
        with pytest.raises(CheckpointError, match="none of which is merged here"):
            merge_state_dicts(models, "dppa_regmean", parameters=parameters, base="base")
        return
    # A tensor alone may be any of a model's.
    name = "model.layers.0.mlp.up_proj.weight"
    alone = {model: {name: tensors[name]} for model, tensors in models.items()}
    merge_state_dicts(alone, "dppa_regmean", parameters=parameters, base="base")


def spoil(
    path: Path,
    change: Callable[[dict[str, torch.Tensor]], object],
    rename: Callable[[str], str] = str,
) -> None:
    """Write a file again with other tensors, and its own metadata or other ones."""
    with safe_open(path, framework="pt") as file:
        metadata = {key: rename(value) for key, value in file.metadata().items()}
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("parameters", "shared", "words"),
    [
        ({"weight": -0.5}, {}, "weight is -0.5; allowed is a finite float32 number of at least 0"),
        ({}, {"moment_shrinkage": 1.5}, "moment_shrinkage is 1.5; allowed is a number from 0 to 1"),
        ({}, {"moment_ridge": -1}, "moment_ridge is -1; allowed is"),
        ({"activations": 3}, {}, "activations is 3"),
    ],
)
def test_values_out_of_range(
    parameters: dict[str, object],
    shared: dict[str, object],
    words: str,
    family: Path,
    run_yaml: RunYaml,
    tmp_path: Path,
) -> None:
    models = {"math": parameters, "law": {}}
    content = recipe(family, "dppa_regmean", models, parameters=shared)
    assert words in refusal(run_yaml, content, tmp_path)
