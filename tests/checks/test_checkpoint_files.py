"""Shards, indices and LoRA adapters."""

import os
import shutil
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
from check_command import check, of_recipe, said, sound
from checkpoint_edits import edit
from checkpoints import recipe, save_family
from commands import Merge
from mergekit.common import ModelReference
from transformers import LlamaForCausalLM


def test_shards(tmp_path: Path) -> None:
    family = save_family(tmp_path, shard="20KB")
    index = family / "math" / "model.safetensors.index.json"
    kept = index.read_text(encoding="utf-8")
    assert of_recipe(tmp_path, recipe(family)).exit_code == 0
    edit(index, lambda content: content["weight_map"].update({"model.norm.weight": "../x"}))
    assert "points outside the folder" in of_recipe(tmp_path, recipe(family)).stdout
    index.write_text(kept, encoding="utf-8")
    first = sorted((family / "math").glob("*.safetensors"))[0]
    edit(index, lambda content: content["weight_map"].update({"model.norm.weight": first.name}))
    assert "says that model.norm.weight is in" in of_recipe(tmp_path, recipe(family)).stdout
    index.write_text(kept, encoding="utf-8")
    shutil.copy(first, family / "math" / "model.safetensors")
    assert "holds both model.safetensors and an index" in of_recipe(tmp_path, recipe(family)).stdout
    (family / "math" / "model.safetensors").unlink()
    first.unlink()
    assert f"names {first.name}, which is not there" in of_recipe(tmp_path, recipe(family)).stdout


def test_shards_in_a_subfolder(tmp_path: Path, merge: Merge) -> None:
    family = save_family(tmp_path, shard="20KB")
    merge(recipe(family), "--out-shard-size", "20000")
    for folder in (family / "math", tmp_path / "out"):
        (folder / "sub").mkdir()
        for shard in folder.glob("*.safetensors"):
            shard.rename(folder / "sub" / shard.name)
        edit(
            folder / "model.safetensors.index.json",
            lambda content: content.update(
                weight_map={name: f"sub/{file}" for name, file in content["weight_map"].items()}
            ),
        )
    sound(of_recipe(tmp_path, recipe(family), "--sample"))
    done = check(tmp_path / "out", "--verify=all")
    sound(done)
    assert "its recipe gives the same bytes" in done.stdout


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[str, Path, Path]:
    """A model with a LoRA, the cache folder, and what mergekit calls its merge there."""
    save_family(tmp_path)
    adapter = save_adapter(tmp_path / "math", tmp_path / "adapter")
    cache = tmp_path / "cache"
    reference = ModelReference.parse(f"{tmp_path / 'math'}+{adapter}")
    assert reference.lora is not None
    held = cache / f"{reference.model._unique_id()}_{reference.lora._unique_id()}"
    return str(reference), cache, held


def save_adapter(model: Path, folder: Path, **changes: object) -> Path:
    """A LoRA of PEFT's own on a model."""
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], **changes}
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    peft.get_peft_model(LlamaForCausalLM.from_pretrained(model), adapter).save_pretrained(folder)
    return folder


def of_adapter(tmp_path: Path, model: str = "") -> list[str]:
    """What is found of the first model with an adapter, but for the flag that it needs."""
    content = recipe(tmp_path)
    content["models"][0]["model"] = model or f"{tmp_path / 'math'}+{tmp_path / 'adapter'}"
    lines = of_recipe(tmp_path, content).stdout.splitlines()
    assert "note: recipe: mergekit-yaml needs --lora-merge-cache for it." in lines
    return [line for line in lines if "+" in line]


def test_adapters(adapted: tuple[str, Path, Path], tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    assert of_adapter(tmp_path) == []

    def one(sentence: str, severity: str = "error") -> None:
        (line,) = of_adapter(tmp_path)
        assert line.startswith(f"{severity}: {tmp_path / 'math'}+{adapter}: ")
        assert sentence in line
        shutil.rmtree(adapter)
        save_adapter(tmp_path / "math", adapter)

    weights.unlink()
    one("holds no weights; allowed are adapter_model.safetensors and adapter_model.bin.")
    config.unlink()
    one("adapter_config.json is missing, empty or not JSON.")
    weights.write_bytes(weights.read_bytes()[:-100])
    one("is truncated")
    edit(config, lambda held: held.update(r=8))
    one("its LoRA has rank 8, and 12 factors have another rank, such as base_model.model.model.")
    edit(config, lambda held: held.update(r=0))
    one("its LoRA has rank 0; allowed is a whole number of at least 1.")
    edit(config, lambda held: held.update(base_model_name_or_path="org/another"))
    one("its LoRA was trained on org/another, and is given on", "note")
    edit(config, lambda held: held.update(base_model_name_or_path=str(tmp_path / "law")))
    one("law, and is given on", "warning")
    edit(config, lambda held: held.update(modules_to_save=["lm_head"]))
    one("its LoRA replaces whole modules, too: lm_head.", "note")
    factors = safetensors.torch.load_file(weights)

    def rename(old: str, new: str) -> None:
        changed = {name.replace(old, new): tensor for name, tensor in factors.items()}
        safetensors.torch.save_file(changed, weights)

    rename("layers.2", "layers.7")
    one("2 modules of its LoRA are not in the model below, such as model.layers.7.", "warning")
    rename("model.model.layers", "model.transformer.h")
    one("6 modules of its LoRA are not in the model below, such as transformer.h.0.mlp.", "warning")
    factors = {name: torch.ones(4, 4) for name in factors}
    rename("", "")
    one("6 modules of its LoRA have other sizes than in the model below, such as model.layers.0.")
    embeddings = {"base_model.model.model.embed_tokens.weight": torch.ones(98, 32)}
    safetensors.torch.save_file({**safetensors.torch.load_file(weights), **embeddings}, weights)
    one("1 tensor that its LoRA replaces has another shape in the model below: model.embed_tokens")


def test_an_adapter_has_no_sample(adapted: tuple[str, Path, Path], tmp_path: Path) -> None:
    content = recipe(tmp_path)
    content["models"][0]["model"] = f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    notes = said(of_recipe(tmp_path, content, "--sample"), "note")
    assert not any("differ by 0.000" in line for line in notes)
    assert any("adapter: no slice of it can be read here." in line for line in notes)
    content["base_model"] = adapted[0]
    notes = said(of_recipe(tmp_path, content, "--sample"), "note")
    assert not any("differ by" in line for line in notes)


def test_lora_cache(adapted: tuple[str, Path, Path], tmp_path: Path) -> None:
    model, cache, held = adapted
    content = recipe(tmp_path)
    content["models"][0]["model"] = model

    def found() -> list[str]:
        done = of_recipe(tmp_path, content, f"--lora-merge-cache={cache}")
        return [line for line in said(done, "error") + said(done, "warning") if model in line]

    assert found() == []
    held.mkdir(parents=True)
    assert "holds no weights, as after a killed run" in found()[0]
    shutil.copytree(tmp_path / "math", held, dirs_exist_ok=True)
    for file in held.iterdir():
        os.utime(file)
    assert found() == []
    os.utime(tmp_path / "adapter" / "adapter_model.safetensors", (2**31, 2**31))
    assert "is newer than its merge in the cache" in found()[0]
    weights = held / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in found()[0]


def test_an_adapter_that_is_not_there(family: Path, tmp_path: Path) -> None:
    content = recipe(family)
    content["models"][0]["model"] += "+./nowhere"
    assert "there is no adapter ./nowhere" in of_recipe(tmp_path, content).stdout
