"""The tensors that mergekit reads under other names, or packs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from check_command import check, of_recipe, said, sound
from checkpoint_edits import edit, rename, without_prefix
from checkpoints import recipe, save_family, tensors_of, write_recipe
from sliced_recipes import sliced

from dppa_mergekit.checks import mergekit_reads
from dppa_mergekit.checks.check import check_recipe


def test_names_that_mergekit_knows(
    tmp_path: Path, merge: Callable[..., dict[str, torch.Tensor]]
) -> None:
    family = save_family(tmp_path, "gpt2")
    rename(family / "base", without_prefix)
    content = recipe(family)
    sound(of_recipe(tmp_path, content))
    for each in content["models"]:
        del each["parameters"]["weight"]
    path = write_recipe(tmp_path / "recipe.yml", content)
    found = list(check_recipe(path, None, sample=False, weighted=False))
    assert {each.severity for each in found} == {"note"}
    merge(recipe(family))
    sound(check(tmp_path / "out"))
    # Those that it does not know are missing, or lost.
    rename(tmp_path / "out", lambda name: name.replace("h.1.mlp", "more"))
    assert said(check(tmp_path / "out"), "error") == [
        f"error: {tmp_path / 'out'}: 4 tensors that its recipe gives are missing, such as "
        f"transformer.h.1.mlp.c_fc.bias."
    ]
    rename(family / "math", lambda name: name.replace("transformer.h.1.mlp", "more"))
    models = {"math": {"weight": 1.0}, "law": {"weight": 1.0}}
    done = of_recipe(tmp_path, recipe(family, "task_arithmetic", models))
    assert said(done, "error") == [
        f"error: {family / 'math'}: 4 tensors that mergekit reads are missing, such as "
        f"transformer.h.1.mlp.c_fc.bias, and 4 stored tensors are not read, such as "
        f"more.c_fc.bias: it may be saved under other names."
    ]


def test_experts_that_mergekit_packs(
    tmp_path: Path, merge: Callable[..., dict[str, torch.Tensor]]
) -> None:
    family = save_family(tmp_path, "mixtral")
    packed = merge(recipe(family))
    out = tmp_path / "out"
    sound(check(out, "--verify=all"))
    content = recipe(family, "dppa", {"law": {"weight": 1.0}, "../out": {"weight": 1.0}})
    content["models"][1]["model"] = str(out)
    sound(of_recipe(tmp_path, content))
    onto_packed = recipe(family, "dppa", {"law": {"weight": 1.0}}, base_model=str(out))
    sound(of_recipe(tmp_path, onto_packed))
    unpacked = tensors_of(family / "law")
    lost, expert = "model.layers.1.mlp.experts.down_proj", "layers.1.block_sparse_moe.experts.2."
    for folder, changed, sentence in (
        (out, {key: each for key, each in packed.items() if key != lost}, "mergekit reads is"),
        (
            out,
            {**packed, "model.more.weight": torch.ones(2, 2)},
            "leaves out 1 stored tensor: model.more.weight,",
        ),
        # The experts that are left could be packed: into a tensor of another shape.
        (
            family / "law",
            {key: each for key, each in unpacked.items() if expert not in key},
            "3 tensors of experts are missing, such as",
        ),
    ):
        (weights,) = folder.glob("*.safetensors")
        kept = weights.read_bytes()
        safetensors.torch.save_file(changed, weights, {"format": "pt"})
        (error,) = said(of_recipe(tmp_path, content), "error")
        assert error.startswith(f"error: {folder}: ")
        assert sentence in error
        weights.write_bytes(kept)
    (weights,) = out.glob("*.safetensors")
    del packed[lost]
    safetensors.torch.save_file(packed, weights, {"format": "pt"})
    assert f"1 tensor that its recipe gives is missing: {lost}" in check(out).stdout


def test_filters_fit_outputs(tmp_path: Path) -> None:
    family = save_family(tmp_path, "mixtral")

    def warned(text: str) -> bool:
        density = [{"filter": text, "value": 0.1}, {"value": 0.3}]
        done = of_recipe(
            tmp_path, recipe(family, "dppa", {"math": {"weight": 1.0, "density": density}})
        )
        return f"the filter '{text}' is in no tensor's name" in done.stdout

    # Experts are packed, and only then asked for.
    assert not warned("gate_up_proj")
    assert warned("w1")
    assert not warned("self_attn")
    # Those of a model's own parameters are held against its own names.
    family = save_family(tmp_path / "aliased", "gpt2")
    rename(family / "base", without_prefix)
    content = sliced(family, [2, 3], method="linear")
    source = content["slices"][0]["sources"][1]
    source["parameters"]["weight"] = [{"filter": "transformer.h.2.", "value": 1}, {"value": 0}]
    assert "in no tensor's name" not in of_recipe(tmp_path, content).stdout


@pytest.fixture
def unplanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """mergekit is not to be asked."""

    def refuse(*_: object) -> None:
        raise AssertionError("mergekit was asked")

    monkeypatch.setattr(mergekit_reads, "plan_merge", refuse)
    monkeypatch.setattr(mergekit_reads, "plan_merge_again", refuse)


@pytest.mark.usefixtures("unplanned")
def test_names_that_only_the_merge_can_tell(tmp_path: Path) -> None:
    family = save_family(tmp_path, "gpt2")
    rename(family / "base", without_prefix)
    content = recipe(family)
    content["models"][0]["model"] += "+me/lora"
    done = of_recipe(tmp_path, content)
    assert done.exit_code == 0, done.stdout
    assert len(said(done, "warning")) == 4
    assert all("whether mergekit knows them" in each for each in said(done, "warning"))
    # A merge whose models are no longer here.
    out = family / "law"
    content["models"][0]["model"] = str(family / "gone")
    write_recipe(out / "mergekit_config.yml", content)
    done = check(out)
    assert done.exit_code == 0, done.stdout
    (warned,) = said(done, "warning")
    assert "; other names, which cannot be looked up here, may explain it: a model of its" in warned


def test_names_that_mergekit_cannot_be_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = save_family(tmp_path, "gpt2")
    rename(family / "base", without_prefix)
    content = recipe(family, dtype="float7")
    done = of_recipe(tmp_path, content)
    assert len(said(done, "error")) == 1
    # Names alone do not tell.
    assert sum("40 tensors of the base model are missing" in e for e in said(done, "warning")) == 2
    write_recipe(family / "law" / "mergekit_config.yml", content)
    (warned,) = said(check(family / "law"), "warning")
    assert "which cannot be looked up here, may explain it: dtype is 'float7'" in warned
    del content["merge_method"]
    assert len(said(of_recipe(tmp_path, content), "error")) == 2
    # What it logs meanwhile would be a traceback.
    for name in ("base", "math", "law"):
        edit(family / name / "config.json", lambda held: held.update(architectures=["Unknown"]))
    assert said(of_recipe(tmp_path, recipe(family)), "error")
    assert caplog.records == []


def test_of_a_long_reason_both_ends_are_told(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError(f"it begins {'and goes on ' * 50}and it ends.")

    monkeypatch.setattr("mergekit.merge._model_out_config", fail)
    (error,) = said(of_recipe(tmp_path, recipe(family)), "error")
    assert "it cannot be merged (it begins and goes on" in error
    assert error.endswith("and it ends).")
    assert len(error) < 300
