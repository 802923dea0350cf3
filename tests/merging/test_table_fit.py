"""Nothing is lost in silence: merges against what transformers loads, of many architectures."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from check_command import of_recipe, said
from checkpoint_edits import edit
from checkpoints import recipe, save_family, tensors_of
from commands import RunYaml
from many_families import FAMILIES, LOST, MERGED, save_pair
from transformers import LlamaForCausalLM, PreTrainedModel

from dppa_mergekit.checkpoints.tensor_loading import ties_head
from dppa_mergekit.merging.table_fit import fit_table

WEIGHT = 0.7


def differences(folder: Path, model_class: type[PreTrainedModel]) -> list[str]:
    """Parameters of the merge, as transformers loads it, that are not base + weight * delta."""
    merged, info = model_class.from_pretrained(folder / "out", output_loading_info=True)
    base, tuned = (
        model_class.from_pretrained(folder / name).state_dict() for name in ("base", "tuned")
    )
    wrong = [
        name
        for name, tensor in merged.state_dict().items()
        if tensor.is_floating_point()
        and not torch.allclose(tensor, base[name] + WEIGHT * (tuned[name] - base[name]), atol=1e-5)
    ]
    assert set(info["missing_keys"]) <= set(wrong)
    return wrong


@pytest.mark.parametrize("name", FAMILIES)
def test_a_merge_is_whole_or_refused(
    name: str, tmp_path: Path, run_yaml: RunYaml, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES[name]
    model_class = save_pair(tmp_path, family.build)
    content = recipe(tmp_path, "dppa", {"tuned": {"weight": WEIGHT, "density": 1}})
    done = run_yaml(content)
    if family.outcome == MERGED:
        assert done.exit_code == 0, done.output
        assert differences(tmp_path, model_class) == []
        return
    assert done.exit_code != 0
    assert not (tmp_path / "out").exists()
    if family.outcome == LOST:
        assert "which the merge would lose; set DPPA_MERGEKIT_ALLOW_LOSS=1" in done.output
        monkeypatch.setenv("DPPA_MERGEKIT_ALLOW_LOSS", "1")
        assert run_yaml(content).exit_code == 0
        assert differences(tmp_path, model_class) != []


def test_a_table_that_does_not_fit(tmp_path: Path, run_yaml: RunYaml) -> None:
    save_pair(tmp_path, FAMILIES["gpt-neox"].build)
    done = run_yaml(recipe(tmp_path, "dppa", {"tuned": {"weight": 1.0}}))
    assert (
        "recipe: mergekit's table does not fit GPTNeoXForCausalLM: it reads 6 tensors that no "
        "model has, such as gpt_neox.layers.0.attention.bias."
    ) in done.output


def add(folder: Path, more: dict[str, torch.Tensor]) -> None:
    file = folder / "model.safetensors"
    safetensors.torch.save_file({**tensors_of(folder), **more}, file, {"format": "pt"})


@pytest.mark.parametrize("method", ["dppa", "dare_dpa"])
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.3.mlp.up_proj.weight",
        "mtp.layers.0.eh_proj.weight",
        "v_head.summary.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.vision_tower.blocks.0.attn.bias.weight",
    ],
)
def test_tensors_that_are_lost(name: str, method: str, tmp_path: Path, run_yaml: RunYaml) -> None:
    family = save_family(tmp_path)
    add(family / "law", {name: torch.ones(8, 8)})
    done = run_yaml(recipe(family, method, {"math": {"weight": 1.0}, "law": {"weight": 1.0}}))
    assert done.exit_code != 0
    assert f"{family / 'law'}: mergekit's table" in done.output
    assert f"1 stored tensor: {name}, which the merge would lose" in done.output
    assert not (tmp_path / "out").exists()


def test_a_model_saved_under_other_names_is_one_fault(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = save_family(tmp_path)
    renamed = {
        name.replace("model.layers.1.", "model.blocks.1."): tensor
        for name, tensor in tensors_of(family / "law").items()
    }
    safetensors.torch.save_file(renamed, family / "law" / "model.safetensors", {"format": "pt"})
    done = run_yaml(recipe(family))
    assert done.exit_code != 0
    assert (
        f"{family / 'law'}: 9 tensors that mergekit reads are missing, such as "
        f"model.layers.1.input_layernorm.weight, and 9 stored tensors are not read, such as "
        f"model.blocks.1.input_layernorm.weight: it may be saved under other names."
    ) in done.output
    assert "more: mergekit-dppa check" not in done.output


def test_experts_that_every_model_lacks(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = save_family(tmp_path, "mixtral")
    for name in ("base", "math", "law"):
        whole = tensors_of(family / name)
        kept = {key: each for key, each in whole.items() if ".experts.3." not in key}
        assert len(whole) - len(kept) == 9
        safetensors.torch.save_file(kept, family / name / "model.safetensors", {"format": "pt"})
    done = run_yaml(recipe(family))
    assert done.exit_code != 0
    assert f"{family / 'base'}: 9 tensors of experts are missing, such as" in done.output
    assert not (tmp_path / "out").exists()


def test_a_projection_that_all_experts_lack(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = save_family(tmp_path, "mixtral")
    kept = {key: each for key, each in tensors_of(family / "law").items() if ".w3." not in key}
    safetensors.torch.save_file(kept, family / "law" / "model.safetensors", {"format": "pt"})
    done = run_yaml(recipe(family))
    assert done.exit_code != 0
    assert f"{family / 'law'}: 3 tensors that mergekit reads are missing" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["dppa", "passthrough"])
def test_configurations_that_transformers_refuses(
    method: str, tmp_path: Path, run_yaml: RunYaml
) -> None:
    save_pair(tmp_path, FAMILIES["qwen2"].build)
    sources = [{"model": str(tmp_path / "base"), "layer_range": [0, 1]}]
    if method == "dppa":
        more = {"parameters": {"weight": 1.0}}
        sources.append({"model": str(tmp_path / "tuned"), "layer_range": [0, 1], **more})
    content = recipe(tmp_path, method, {})
    del content["models"]
    content["slices"] = [{"sources": sources}]
    (error,) = said(of_recipe(tmp_path, content), "error")
    assert "transformers refuses the configuration that the merge would get" in error
    assert "`num_hidden_layers` (1)" in error
    assert run_yaml(content).exit_code != 0
    assert (tmp_path / "out").exists() == (method == "passthrough")


def test_a_head_that_is_not_tied_and_not_there(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = save_family(tmp_path, "llama_untied")
    for name in ("law", "base"):
        kept = tensors_of(family / name)
        del kept["lm_head.weight"]
        safetensors.torch.save_file(kept, family / name / "model.safetensors", {"format": "pt"})
        done = run_yaml(recipe(family, "dppa", {"law": {"weight": 1.0}}))
        assert done.exit_code != 0
        if name == "law":
            assert f"{family / 'law'}: tensor lm_head.weight is missing, and its" in done.output
    for method in ("dppa", "task_arithmetic"):
        errors = said(
            of_recipe(tmp_path, recipe(family, method, {"law": {"weight": 1.0}})), "error"
        )
        assert errors == [
            "error: recipe: the merge would get no lm_head.weight, which its config.json does not "
            "tie to the embeddings, so that transformers would initialise it anew; set "
            "DPPA_MERGEKIT_ALLOW_LOSS=1 to merge all the same."
        ]


def test_tensors_that_need_no_merge(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = save_family(tmp_path)
    head = tensors_of(family / "math")["model.embed_tokens.weight"].clone()
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.rotary_emb.inv_freq": torch.ones(4),
        "model.embeddings.position_ids": torch.arange(4),
        "model.layers.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
    }
    add(family / "math", {**buffers, "lm_head.weight": head})
    assert run_yaml(recipe(family)).exit_code == 0


def test_a_head_that_only_a_fine_tuned_model_has_is_not_lost(
    tmp_path: Path, run_yaml: RunYaml
) -> None:
    family = save_family(tmp_path)
    head = tensors_of(family / "math")["model.embed_tokens.weight"].clone()
    add(family / "math", {"lm_head.weight": head + 1})
    edit(family / "math" / "config.json", lambda held: held.update(tie_word_embeddings=False))
    assert run_yaml(recipe(family)).exit_code == 0
    # The configuration ties it; transformers does not, where both are stored and differ.
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)


def test_slices_may_leave_out_layers(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = save_family(tmp_path)
    sources = [
        {"model": str(family / name), "layer_range": [0, 2], **more}
        for name, more in (("base", {}), ("math", {"parameters": {"weight": 1.0}}))
    ]
    content = recipe(family)
    del content["models"]
    assert run_yaml({**content, "slices": [{"sources": sources}]}).exit_code == 0


def test_whose_configuration_ties_the_head() -> None:
    text = transformers.LlamaConfig(tie_word_embeddings=False)
    whole = transformers.LlavaConfig(text_config=text, tie_word_embeddings=True)
    assert ties_head(whole)
    assert not ties_head(text)
    assert not ties_head(transformers.LlavaConfig(text_config=text, tie_word_embeddings=False))


def test_the_first_of_several_names_is_read() -> None:
    class Named:
        name, optional, aliases, tied_names = "a", False, ("b",), ("c",)

    assert fit_table(["a", "b"], [Named()], (), {}).unread == ["b"]
    assert fit_table(["b", "c"], [Named()], (), {}).unread == ["c"]
    assert fit_table(["c"], [Named()], (), {}).unread == []
    assert fit_table(["d"], [Named()], (), {}).absent == ["a"]
    # What the model's own ties replace.
    assert fit_table(["a", "d"], [Named()], (), {"d": "a"}).unread == []
