"""Fine-tuned models that do not fit their base, and those that do."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import safetensors.torch
import torch
from check_command import check, of_recipe, said, sound
from checkpoint_edits import edit
from checkpoints import new_model, recipe, save_family, tensors_of


def test_models_that_do_not_fit(family: Path, tmp_path: Path) -> None:
    def refused(sentence: str, *options: str) -> None:
        done = of_recipe(tmp_path, recipe(family), *options)
        assert sentence in done.stdout, done.stdout
        shutil.rmtree(family / "math")
        shutil.copytree(family / "kept", family / "math")

    shutil.copytree(family / "math", family / "kept")
    config = family / "math" / "config.json"
    edit(config, lambda content: content.update(num_attention_heads=8))
    refused("config.json has num_attention_heads 8, and 4 in the base model")
    edit(
        family / "math" / "tokenizer.json",
        lambda content: content["model"]["vocab"].update(w1=6, w2=5),
    )
    refused("2 tokens have other ids than in the base model ('w1' is 6, not 5)")
    tensors = tensors_of(family / "math")
    weights = family / "math" / "model.safetensors"

    def save(changed: Mapping[str, torch.Tensor]) -> None:
        safetensors.torch.save_file(dict(changed), weights, {"format": "pt"})

    name = "model.layers.1.mlp.up_proj.weight"
    save({key: each for key, each in tensors.items() if key != name})
    refused(f"1 tensor that mergekit reads is missing: {name}.")
    save({**tensors, "model.layers.3.more.weight": torch.ones(2)})
    refused("leaves out 1 stored tensor: model.layers.3.more.weight, which the merge would lose")
    save({**tensors, name: torch.ones(3, 3)})
    refused(f"1 tensor has another shape than in the base model: {name} (3 x 3, not 80 x 32).")
    save({**tensors, "model.embed_tokens.weight": torch.ones(98, 32)})
    refused("the vocabularies differ; set tokenizer: {source: base} or {source: union}.")
    save({**tensors, name: torch.ones(80, 32).to(torch.int8)})
    refused("1 weight is quantised")
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("is truncated")
    weights.unlink()
    refused("there are no weights in the folder")
    config.write_text("", encoding="utf-8")
    refused("config.json is missing, empty or not JSON")
    save({key: each.T.contiguous() if "q_proj" in key else each for key, each in tensors.items()})
    refused("q_proj.weight is the base model's, transposed.", "--sample")
    save({key: each * torch.nan if "layers" in key else each for key, each in tensors.items()})
    refused("it or the base model holds NaN or infinity in 4 of 4 slices", "--sample")
    new_model("llama", 77).save_pretrained(family / "math")
    refused("it is not a fine-tune of this base", "--sample")
    # What has no numbers to be compared.
    linears = [key for key, each in tensors.items() if "layers" in key and each.ndim == 2]
    save({**tensors, **{key: tensors[key].to(torch.float8_e4m3fn) for key in linears}})
    refused("math: no slice of it can be read here", "--sample")
    save({**tensors, **{key: tensors[key][:0] for key in linears}})
    shutil.copy(weights, family / "base" / "model.safetensors")
    refused("math: no slice of it can be read here", "--sample")


def test_what_is_no_mistake(tmp_path: Path) -> None:
    family = save_family(tmp_path, "llama_untied")
    # A tied fine-tuned model of an untied base, and buffers that older releases stored.
    tensors = tensors_of(family / "math")
    del tensors["lm_head.weight"]
    safetensors.torch.save_file(tensors, family / "math" / "model.safetensors", {"format": "pt"})
    edit(family / "math" / "config.json", lambda content: content.update(tie_word_embeddings=True))
    tensors = tensors_of(family / "base")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    safetensors.torch.save_file(tensors, family / "base" / "model.safetensors", {"format": "pt"})
    done = of_recipe(tmp_path, recipe(family))
    assert (done.exit_code, said(done, "warning")) == (0, []), done.stdout
    # Another vocabulary, where the recipe says which tokenizer the merge gets.
    tensors = tensors_of(family / "law")
    tensors["model.embed_tokens.weight"] = torch.ones(98, 32)
    safetensors.torch.save_file(tensors, family / "law" / "model.safetensors", {"format": "pt"})
    done = of_recipe(tmp_path, recipe(family, tokenizer={"source": "base"}))
    assert (done.exit_code, said(done, "warning")) == (0, []), done.stdout
    # Links, as in the Hub's cache.
    (family / "blobs").mkdir()
    for path in (family / "base").iterdir():
        path.rename(family / "blobs" / path.name)
        path.symlink_to(family / "blobs" / path.name)
    done = of_recipe(tmp_path, recipe(family, tokenizer={"source": "base"}), "--sample")
    assert done.exit_code == 0, done.stdout


def test_an_output_head_that_is_not_tied(
    tmp_path: Path, merge: Callable[..., dict[str, torch.Tensor]]
) -> None:
    family = save_family(tmp_path, "llama_untied")
    merge(recipe(family))

    def behead(folder: Path) -> None:
        headless = tensors_of(folder)
        # mergekit would take the embedding in its place.
        del headless["lm_head.weight"]
        (weights,) = folder.glob("*.safetensors")
        safetensors.torch.save_file(headless, weights, {"format": "pt"})

    behead(tmp_path / "out")
    (error,) = said(check(tmp_path / "out"), "error")
    assert error.endswith("1 tensor that its recipe gives is missing: lm_head.weight.")
    behead(family / "law")
    (error,) = said(of_recipe(tmp_path, recipe(family)), "error")
    assert error.endswith(
        "law: tensor lm_head.weight is missing, and its config.json does not tie it to the "
        "embeddings."
    )


def test_tied_tensors_that_only_the_base_stores(
    tmp_path: Path, merge: Callable[..., object]
) -> None:
    family = save_family(tmp_path, "t5")
    stored = tensors_of(family / "base")
    for name in ("encoder", "decoder"):
        stored[f"{name}.embed_tokens.weight"] = stored["shared.weight"].clone()
    safetensors.torch.save_file(stored, family / "base" / "model.safetensors", {"format": "pt"})
    sound(of_recipe(tmp_path, recipe(family)))
    merge(recipe(family))


def test_a_base_with_more_than_mergekit_reads(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {**tensors_of(family / "base"), "model.more.weight": torch.ones(2, 2)}
    safetensors.torch.save_file(more, family / "base" / "model.safetensors", {"format": "pt"})
    sentence = (
        f"{family / 'base'}: mergekit's table of this architecture leaves out 1 stored tensor: "
        f"model.more.weight, which the merge would lose; set DPPA_MERGEKIT_ALLOW_LOSS=1 to merge "
        f"all the same."
    )
    assert said(of_recipe(tmp_path, recipe(family)), "error") == [f"error: {sentence}"]
    monkeypatch.setenv("DPPA_MERGEKIT_ALLOW_LOSS", "1")
    done = of_recipe(tmp_path, recipe(family))
    assert (said(done, "error"), said(done, "warning")) == ([], [f"warning: {sentence}"])


def test_what_the_merge_takes_from_its_base(family: Path, tmp_path: Path) -> None:
    edit(family / "base" / "config.json", lambda held: held.update(dtype="bfloat16"))
    (warning,) = said(of_recipe(tmp_path, recipe(family)), "warning")
    assert "its weights are float32 and its config.json says bfloat16, and so will be" in warning
    assert said(of_recipe(tmp_path, recipe(family, dtype="float32")), "warning") == []
    for name in ("base", "math"):
        (family / name / "tokenizer.json").unlink()
    done = of_recipe(tmp_path, recipe(family, dtype="float32"))
    (warning,) = said(done, "warning")
    assert warning == (
        f"warning: {family / 'base'}: there is no tokenizer in it, so the merge gets none from it."
    )
    done = of_recipe(tmp_path, recipe(family, dtype="float32", tokenizer={"source": "union"}))
    for severity, name in (("error", "base"), ("warning", "math")):
        (found,) = said(done, severity)
        assert found.startswith(f"{severity}: {family / name}: there is no tokenizer in it")


def test_chat_templates(family: Path, tmp_path: Path) -> None:
    (family / "law" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (warning,) = said(of_recipe(tmp_path, recipe(family)), "warning")
    assert "set chat_template to keep it" in warning
    assert said(of_recipe(tmp_path, recipe(family, chat_template="auto")), "warning") == []


def test_a_head_that_only_the_base_has(tmp_path: Path, merge: Callable[..., object]) -> None:
    family = save_family(tmp_path, "llama_untied")
    tensors = tensors_of(family / "math")
    del tensors["lm_head.weight"]
    safetensors.torch.save_file(tensors, family / "math" / "model.safetensors", {"format": "pt"})
    edit(family / "math" / "config.json", lambda content: content.update(tie_word_embeddings=True))
    done = of_recipe(tmp_path, recipe(family))
    assert done.exit_code == 0
    assert (
        f"note: {family / 'math'}: its output head is its embeddings, and the base model has "
        f"lm_head.weight: the merge takes the embeddings as its head."
    ) in done.stdout
    merge(recipe(family))
