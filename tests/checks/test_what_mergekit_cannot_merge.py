"""What looks like a recipe and a model, and cannot be planned or merged: one sentence each."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from check_command import check, of_recipe, said
from checkpoint_edits import edit
from checkpoints import recipe, tensors_of, unequal, write_recipe
from commands import Merge, RunYaml
from many_families import FAMILIES, MERGED, save_pair
from sliced_recipes import sliced

Change = Callable[[Path], object]


def architectures(value: object) -> Change:
    def change(folder: Path) -> None:
        edit(folder / "config.json", lambda held: held.update(architectures=value))

    return change


def without_architectures(folder: Path) -> None:
    edit(folder / "config.json", lambda held: held.pop("architectures"))


def renamed(name: str) -> Change:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (folder / "model.safetensors").write_text(text, encoding="utf-8")


def pickled(folder: Path) -> Path:
    torch.save(tensors_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def truncated(folder: Path) -> None:
    path = pickled(folder)
    path.write_bytes(path.read_bytes()[:-3000])


class Payload:
    """Code in a pickle."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("the payload ran",)


def with_code(folder: Path) -> None:
    torch.save({**tensors_of(folder), "more": Payload()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def only_adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (architectures(None), "config.json has architectures None; mergekit merges models of"),
        (architectures([]), "config.json has architectures []; mergekit merges models of"),
        (architectures(["A", "B"]), "config.json has architectures ['A', 'B']; mergekit merges"),
        (without_architectures, "config.json has no architectures; mergekit merges models of"),
        (renamed("consolidated.safetensors"), "its weights are in consolidated.safetensors, and"),
        (renamed("weights.safetensors"), "its weights are in weights.safetensors, and mergekit"),
        (renamed("model.bin"), "its weights are in model.bin, and mergekit reads"),
        (pointer, "is a pointer of git-LFS, not the weights: git lfs pull"),
        (truncated, "pytorch_model.bin is truncated or damaged"),
        (with_code, "holds more than tensors, and PyTorch would have to run its code"),
        (only_adapter, "it is a LoRA, not a whole model: write model+LoRA."),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("model", ["base", "law"])
def test_models(
    model: str,
    change: Change,
    sentence: str,
    family: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    change(family / model)
    (error,) = said(of_recipe(tmp_path, recipe(family)), "error")
    assert error.startswith(f"error: {family / model}: ")
    assert sentence in error
    assert "payload" not in capfd.readouterr().out


def test_pickles_whose_code_would_run(
    family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with_code(family / "law")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (error,) = said(of_recipe(tmp_path, recipe(family)), "error")
    assert "is pickled, and TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set" in error
    assert "payload" not in capfd.readouterr().out


def test_pickled_models_are_compared(family: Path, tmp_path: Path) -> None:
    for name in ("base", "math", "law"):
        pickled(family / name)
    done = of_recipe(tmp_path, recipe(family))
    assert (done.exit_code, said(done, "warning")) == (0, [])
    path = family / "law" / "pytorch_model.bin"
    changed = torch.load(path, weights_only=True)
    changed["model.norm.weight"] = torch.ones(7)
    torch.save(changed, path)
    (error,) = said(of_recipe(tmp_path, recipe(family)), "error")
    assert "has another shape than in the base model: model.norm.weight (7, not 32)" in error


@pytest.mark.parametrize(
    ("parameters", "severity", "sentence"),
    [
        ({"weight": []}, "error", "weight is an empty list, and so has no value: leave it out."),
        (
            {"weight": [{"filter": "mlp", "value": 1}, 0.5]},
            "error",
            "weight mixes filters and plain values, and mergekit refuses that: write every plain "
            "one as a value, such as {value: 0.5}.",
        ),
        (
            {"weight": 1, "density": [i / 10 for i in range(1, 10)]},
            "warning",
            "density is a gradient of 9 values for 3 layers: a layer gets what lies between its "
            "neighbours.",
        ),
        (
            {"weight": [{"filter": "mlp", "value": [0, 0, 1, 1]}, {"value": 1}]},
            "warning",
            "weight is a gradient of 4 values for 3 layers: a layer gets what lies between its "
            "neighbours.",
        ),
    ],
)
def test_settings(
    parameters: dict[str, object], severity: str, sentence: str, family: Path, tmp_path: Path
) -> None:
    done = of_recipe(tmp_path, recipe(family, models={"law": parameters}))
    (found,) = said(done, severity)
    assert found.startswith(f"{severity}: ")
    assert found.endswith(sentence)
    assert done.exit_code == (severity == "error")


@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
def test_names_of_dtypes(key: str, family: Path, tmp_path: Path) -> None:
    done = of_recipe(tmp_path, recipe(family, **{key: "torch.float32"}))
    assert said(done, "error") == [
        f"error: {key}: it is 'torch.float32'; allowed is bfloat16, float16, float32, float64."
    ]


@pytest.mark.parametrize("layers", [[2, 4], [3, 4], [2, 1], [-1, 2]])
@pytest.mark.parametrize("method", ["dppa", "linear"])
def test_layers_that_do_not_exist(
    layers: list[int], method: str, family: Path, tmp_path: Path, run_yaml: RunYaml
) -> None:
    content = sliced(family, [0, 2], layers, method=method)
    done = of_recipe(tmp_path, content)
    allowed = "has 3 layers: allowed is [a, b] with 0 <= a <= b <= 3."
    sentence = f"error: slice 2: layer_range is {layers}, and {family / 'base'} {allowed}"
    assert said(done, "error").count(sentence) == 1
    if method == "dppa":
        ended = run_yaml(content)
        assert f"base: layer_range is {layers}, and it {allowed}" in ended.output


@pytest.mark.parametrize("layers", [[0, 0], [2, 2], [3, 3]])
@pytest.mark.parametrize("method", ["dppa", "linear"])
def test_slices_of_no_layers(
    layers: list[int], method: str, family: Path, tmp_path: Path, merge: Merge
) -> None:
    whole, empty = ([0, 3],), ([0, 2], layers, [2, 3])
    done = of_recipe(tmp_path, sliced(family, *empty, method=method))
    assert done.exit_code == 0, done.stdout
    assert said(done, "warning") == [
        f"warning: slice 2: layer_range is {layers}, which holds no layer: the second number is "
        f"the layer after the last."
    ]
    merged = merge(sliced(family, *empty, method=method))
    assert not unequal(merged, merge(sliced(family, *whole, method=method), output="whole"))


@pytest.mark.parametrize(
    "name",
    ["clip", "cohere", "falcon", "gpt-neox", "gpt2", "jamba", "llava", "mixtral", "opt", "whisper"],
)
def test_architectures(name: str, tmp_path: Path) -> None:
    save_pair(tmp_path, FAMILIES[name].build)
    content = recipe(tmp_path, "task_arithmetic", {"tuned": {"weight": 1.0}})
    done = of_recipe(tmp_path, content)
    errors = said(done, "error")
    assert (errors == []) == (FAMILIES[name].outcome == MERGED), done.stdout
    assert all("Traceback" not in error for error in errors)


def test_a_plan_is_asked_for_last(family: Path, tmp_path: Path) -> None:
    asking = "asking mergekit (--quick leaves this out)"
    path = write_recipe(tmp_path / "recipe.yml", recipe(family))
    assert asking in check(path).stderr
    assert asking not in check(path, "--quick").stderr
    findings = json.loads(check(path, "--json").stdout)
    assert {finding["severity"] for finding in findings} == {"note"}
    assert asking not in of_recipe(tmp_path, recipe(family, dtype="float7")).stderr
