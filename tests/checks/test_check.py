"""`mergekit-dppa check`: what stock mergekit accepts in silence, each tried."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoints import new_model, recipe, save_family, tensors_of, write_recipe
from click.testing import CliRunner, Result
from hub_process import Hub

from dppa_mergekit import method_table
from dppa_mergekit.checks import checkpoint_files, mergekit_reads, mergekit_schema
from dppa_mergekit.checks.check import check_recipe
from dppa_mergekit.cli.main import main


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return save_family(tmp_path)


def check(path: Path, *options: str) -> Result:
    done = CliRunner().invoke(main, ["check", str(path), *options])
    assert isinstance(done.exception, SystemExit | None), done.output
    assert done.exit_code in (0, 1), done.output
    return done


def said(done: Result, severity: str) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith(f"{severity}: ")]


def of_recipe(tmp_path: Path, content: Mapping[str, object], *options: str) -> Result:
    return check(write_recipe(tmp_path / "recipe.yml", content), *options)


def test_a_sound_recipe(family: Path, tmp_path: Path) -> None:
    done = of_recipe(tmp_path, recipe(family), "--sample", f"--output={tmp_path / 'out'}")
    assert done.exit_code == 0
    assert said(done, "error") == said(done, "warning") == []
    assert any("are needed" in line for line in said(done, "note"))
    assert "no errors, no warnings" in done.stdout


def test_what_is_known_of_mergekit_is_so() -> None:
    from mergekit import config, merge_methods

    assert method_table.VARIANTS
    for method in merge_methods.registered_methods():
        spec = method.spec
        shared = [each.name for each in spec.parameters if each.scope.value == "shared"]
        others = [each.name for each in spec.parameters if each.scope.value != "shared"]
        based = spec.contract.base.value == "required"
        assert mergekit_schema.METHODS[spec.name] == mergekit_schema.Method(
            tuple(shared), tuple(others), based
        )
    for model, keys in (
        (config.MergeConfiguration, mergekit_schema.RECIPE),
        (config.InputModelDefinition, mergekit_schema.MODEL),
        (config.InputSliceDefinition, mergekit_schema.SOURCE),
        (config.OutputSliceDefinition, mergekit_schema.SLICE),
        (config.OutputModuleDefinition, mergekit_schema.MODULE),
        (config.ConditionalParameter, mergekit_schema.CONDITION),
    ):
        assert set(model.model_fields) == set(keys)


Change = Callable[[dict], object]

MISTAKES: list[tuple[str, Change, str]] = [
    (
        "a method that is a list",
        lambda content: content.update(merge_method=["dppa"]),
        "merge_method: ['dppa'] is not one",
    ),
    (
        "no weight",
        lambda content: content["models"][0]["parameters"].pop("weight"),
        "there is no weight; allowed is a finite float32 number.",
    ),
    (
        "nothing but the base",
        lambda content: content.update(
            models=[{"model": content["base_model"], "parameters": {"weight": 1}}]
        ),
        "dppa: it needs at least one fine-tuned model beside the base; there is none.",
    ),
    (
        "models that are no list",
        lambda content: content.update(models="./math"),
        "models: it is no list.",
    ),
    (
        "misspelt method",
        lambda content: content.update(merge_method="dpaa"),
        "merge_method: dpaa is not one; did you mean dppa?",
    ),
    (
        "misspelt parameter",
        lambda content: content["models"][0]["parameters"].update(amplfy_90=2),
        "dppa has no parameter amplfy_90, and mergekit ignores it: did you mean amplify_90?",
    ),
    (
        "unknown parameter of the merge",
        lambda content: content.update(parameters={"lamda": 2}),
        "did you mean lambda?",
    ),
    (
        "parameter of another method",
        lambda content: content["models"][0]["parameters"].update(gamma=0.1),
        "dppa has no parameter gamma",
    ),
    (
        "beside parameters",
        lambda content: content["models"][0].update(weight=0.3),
        "weight stands beside parameters, and mergekit ignores it",
    ),
    (
        "at the top level",
        lambda content: content.update(normalize=True),
        "normalize stands beside parameters",
    ),
    (
        "of the whole merge, under a model",
        lambda content: content["models"][0]["parameters"].update({"lambda": 2}),
        "lambda holds for the whole merge",
    ),
    (
        "unknown key",
        lambda content: content.update(dtpe="bfloat16"),
        "mergekit ignores 'dtpe': did you mean dtype?",
    ),
    (
        "out of range",
        lambda content: content["models"][0]["parameters"].update(density=1.2),
        "density is 1.2; allowed is a number from 0 to 1.",
    ),
    (
        "NaN",
        lambda content: content["models"][0]["parameters"].update(weight=float("nan")),
        "weight is nan",
    ),
    (
        "in a gradient",
        lambda content: content["models"][0]["parameters"].update(weight=[0.1, "x"]),
        "weight is 'x'",
    ),
    (
        "in a condition",
        lambda content: content["models"][0]["parameters"].update(
            density=[{"filter": "mlp", "value": 7}, {"value": 0.2}]
        ),
        "density is 7",
    ),
    (
        "a condition that is none",
        lambda content: content["models"][0]["parameters"].update(
            density=[{"fliter": "mlp", "value": 0.1}, {"value": 0.2}]
        ),
        "allowed are filter and value",
    ),
    (
        "a filter that never counts",
        lambda content: content["models"][0]["parameters"].update(
            density=[{"value": 0.2}, {"filter": "mlp", "value": 0.1}]
        ),
        "filters after a value without one",
    ),
    (
        "a filter that fits nothing",
        lambda content: content["models"][0]["parameters"].update(
            density=[{"filter": "attnn", "value": 0.1}, {"value": 0.2}]
        ),
        "the filter 'attnn' is in no tensor's name",
    ),
    ("no base", lambda content: content.pop("base_model"), "dppa needs one, and there is none"),
    ("dtype", lambda content: content.update(dtype="bf16"), "'bf16' is not one; allowed is"),
    (
        "no folder",
        lambda content: content["models"][0].update(model="./nowhere"),
        "./nowhere: there is no such folder.",
    ),
    (
        "a name that no file can have",
        lambda content: content["models"][0].update(model="x" * 5000),
        "it is no folder, and the Hub has it not",
    ),
    (
        "a model that is a number",
        lambda content: content["models"][0].update(model=3),
        "models, 3: model is 3; allowed is a path or a name on the Hub.",
    ),
    (
        "no model",
        lambda content: content["models"][0].update(model=None),
        "there is no model.",
    ),
    (
        "a base that is a list",
        lambda content: content.update(base_model=["a"]),
        "recipe: base_model is ['a']; allowed is a path or a name on the Hub.",
    ),
    (
        "no folder of the base",
        lambda content: content.update(base_model="./nowhere"),
        "its base model is not here to compare the others with.",
    ),
    (
        "given twice",
        lambda content: content["models"][1].update(model=content["models"][0]["model"] + "/."),
        "it is given twice",
    ),
    (
        "the base as a tuned model",
        lambda content: content["models"][1].update(model=content["base_model"] + "/."),
        "it is the base model, spelt as",
    ),
]


@pytest.mark.parametrize(
    ("change", "sentence"), [each[1:] for each in MISTAKES], ids=[each[0] for each in MISTAKES]
)
def test_mistakes_in_a_recipe(change: Change, sentence: str, family: Path, tmp_path: Path) -> None:
    content = recipe(family)
    change(content)
    done = of_recipe(tmp_path, content)
    assert any(sentence in line for line in done.stdout.splitlines()), done.stdout
    severe = "fits nothing" not in sentence and "in no tensor's name" not in sentence
    assert done.exit_code == severe


def test_mergekits_own_methods(family: Path, tmp_path: Path) -> None:
    models = {"math": {"weight": 1.0, "amplify_90": 2.0}}
    done = of_recipe(tmp_path, recipe(family, "ties", models))
    assert said(done, "error") == [
        f"error: models, {family / 'math'}: ties has no parameter amplify_90, and mergekit ignores "
        f"it: known are int8_mask, normalize, rescale, lambda, weight, density."
    ]
    models = {"math": {"weight": float("inf")}}
    assert "no finite number" in of_recipe(tmp_path, recipe(family, "ties", models)).stdout


def test_keys_that_are_there_twice(family: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yml", recipe(family))
    path.write_text(path.read_text() + "merge_method: ties\n", encoding="utf-8")
    lines = len(path.read_text().splitlines())
    done = check(path)
    assert f"error: line {lines}: merge_method is there already" in done.stdout
    # What a merge key brings may be overridden.
    base, math, law = (family / name for name in ("base", "math", "law"))
    text = f"""merge_method: dppa
base_model: {base}
models:
  - model: {math}
    parameters: &shared {{weight: 0.5, density: 0.2}}
  - model: {law}
    parameters: {{<<: *shared, weight: 0.4}}
"""
    path.write_text(text, encoding="utf-8")
    assert check(path).exit_code == 0
    path.write_text(text.replace("weight: 0.4", "weight: 0.4, weight: 0.3"), encoding="utf-8")
    assert "error: line 7: weight is there already, in line 7" in check(path).stdout
    path.write_text("- 1\n", encoding="utf-8")
    assert "no mapping" in check(path).stdout


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models: [", "it is not YAML"),
        ("base_model: {{ base }}", "found unhashable key"),
        ("? [a, b]\n: c", "found unhashable key"),
        ("merge_method: dppa\0", "unacceptable character #x0000"),
        ("base_model: 2024-02-30", "it is not YAML: day is out of range"),
    ],
)
def test_what_is_not_yaml(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yml"
    path.write_text(text, encoding="utf-8")
    assert sentence in said(check(path), "error")[0]


def test_models_that_are_mappings(family: Path, tmp_path: Path) -> None:
    content = recipe(family)
    for key, holder in (("model", content["models"][0]), ("base_model", content)):
        holder[key] = {"model": {"path": holder[key]}}
    done = of_recipe(tmp_path, content, "--sample")
    assert done.exit_code == 0, done.stdout
    notes = said(done, "note")
    assert any("its model is written as a mapping" in each for each in notes)
    assert (
        "note: recipe: its base_model is written as a mapping, which is not looked into." in notes
    )
    # Fine-tuned models are not taken for the base.
    assert not any("differ by" in each for each in notes)


def sliced(family: Path, *ranges: object, method: str = "dppa") -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": str(family / "base"),
        "slices": [
            {
                "sources": [
                    {
                        "model": str(family / name),
                        "layer_range": each,
                        "parameters": {"weight": 1},
                    }
                    for name in ("base", "math")
                ]
            }
            for each in ranges
        ],
    }


def test_slices_that_move_layers(family: Path, tmp_path: Path) -> None:
    assert of_recipe(tmp_path, sliced(family, [0, 2], [2, 3])).exit_code == 0
    # A slice may have a base of its own, which needs no weight.
    based = sliced(family, [0, 2], [2, 3])
    for each in based["slices"]:
        each["base_model"] = each["sources"][1]["model"]
        del each["sources"][1]["parameters"]
    assert "there is no weight" not in of_recipe(tmp_path, based).stdout
    moved = sliced(family, [0, 1], [2, 3])
    done = of_recipe(tmp_path, moved)
    assert "error: slice 2: layer 2 would become layer 1" in done.stdout
    moved["modules"] = {"default": {"slices": moved.pop("slices")}}
    done = of_recipe(tmp_path, moved)
    assert "error: modules, default, slice 2: layer 2 would become layer 1" in done.stdout


@pytest.mark.parametrize("layers", [[0, "a"], [0, None], [0, [1]], [0], "0-3", None])
def test_ranges_that_mergekit_refuses(layers: object, family: Path, tmp_path: Path) -> None:
    done = of_recipe(tmp_path, sliced(family, [0, 2], layers))
    assert [each.split("math: ")[1] for each in said(done, "error")[1:]] == [
        f"layer_range is {layers!r}; allowed is two whole numbers, the first layer and the one "
        f"after the last."
    ]


def test_models_in_slices(family: Path, tmp_path: Path) -> None:
    content = sliced(family, [0, 2], [2, 3])
    again = {**content["slices"][0]["sources"][1], "model": f"{family}/./math"}
    content["slices"][0]["sources"].append(again)
    assert said(of_recipe(tmp_path, content), "error") == [
        f"error: {family}/./math: it is given twice, also as {family}/math: sum the weights."
    ]
    content = sliced(family, [0, 2], [2, 3])
    for each in content["slices"]:
        each["sources"][0]["model"] = f"{family}/./base"
    assert len(said(of_recipe(tmp_path, content), "error")) == 1

    new_model("llama", 3, intermediate_size=96).save_pretrained(family / "math")
    content = sliced(family, [0, 2], [2, 3])
    done = of_recipe(tmp_path, content, "--sample")
    assert "tensors have another shape than in the base model" in done.stdout
    assert "it is no fine-tune of this base" in done.stdout
    content["modules"] = {"default": {"slices": content.pop("slices")}}
    assert "tensors have another shape" in of_recipe(tmp_path, content).stdout
    # Other methods may take layers from anywhere.
    moving = sliced(family, [0, 2], [0, 2], method="linear")
    assert_not_compared(of_recipe(tmp_path, moving, "--sample"))
    edit(family / "math" / "config.json", lambda held: held.update(num_hidden_layers=4))
    assert_not_compared(of_recipe(tmp_path, sliced(family, [0, 2], [2, 3])))


def assert_not_compared(done: Result) -> None:
    assert done.exit_code == 0, done.stdout
    assert "slices may move its layers: it was not compared with the base" in done.stdout


def edit(path: Path, change: Change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


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
    refused("2 tokens have other numbers than in the base model ('w1' is 6, not 5)")
    tensors = tensors_of(family / "math")
    weights = family / "math" / "model.safetensors"

    def save(changed: Mapping[str, torch.Tensor]) -> None:
        safetensors.torch.save_file(dict(changed), weights, {"format": "pt"})

    name = "model.layers.1.mlp.up_proj.weight"
    save({key: each for key, each in tensors.items() if key != name})
    refused(f"1 tensors of the base model are missing, such as {name}.")
    save({**tensors, "model.layers.3.more.weight": torch.ones(2)})
    refused("no output holds them, such as model.layers.3.more.weight.")
    save({**tensors, name: torch.ones(3, 3)})
    refused(f"{name}: 3 x 3 and 80 x 32")
    save({**tensors, "model.embed_tokens.weight": torch.ones(98, 32)})
    refused("the vocabularies differ; set tokenizer: {source: base} or {source: union}.")
    save({**tensors, name: torch.ones(80, 32).to(torch.int8)})
    refused("1 weights are quantised")
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("is truncated")
    weights.unlink()
    refused("there are no weights in the folder")
    config.write_text("", encoding="utf-8")
    refused("config.json is missing, empty or no JSON")
    save({key: each.T.contiguous() if "q_proj" in key else each for key, each in tensors.items()})
    refused("q_proj.weight is the base model's, transposed.", "--sample")
    save({key: each * torch.nan if "layers" in key else each for key, each in tensors.items()})
    refused("4 of 4 slices hold NaN or infinity, here or in the base model", "--sample")
    new_model("llama", 77).save_pretrained(family / "math")
    refused("it is no fine-tune of this base", "--sample")
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


def rename(folder: Path, change: Callable[[str], str]) -> None:
    """Store the tensors of a checkpoint of one file under other names."""
    changed = {change(name): each for name, each in tensors_of(folder).items()}
    (weights,) = folder.glob("*.safetensors")
    safetensors.torch.save_file(changed, weights, {"format": "pt"})


def without_prefix(name: str) -> str:
    return name.removeprefix("transformer.")


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
        f"transformer.h.1.mlp.c_fc.bias.",
        f"error: {family / 'math'}: 4 tensors are in no tensor of the base model, and no output "
        f"holds them, such as more.c_fc.bias.",
    ]


def sound(done: Result) -> None:
    assert (done.exit_code, said(done, "warning")) == (0, []), done.stdout


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
        (out, {key: each for key, each in packed.items() if key != lost}, "mergekit reads are"),
        (out, {**packed, "model.more.weight": torch.ones(2, 2)}, "no output holds them"),
        # The experts that are left could be packed: into a tensor of another shape.
        (
            family / "law",
            {key: each for key, each in unpacked.items() if expert not in key},
            "3 tensors that mergekit reads are missing",
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
    assert f"1 tensors that its recipe gives are missing, such as {lost}" in check(out).stdout


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


def test_an_output_head_that_is_not_tied(
    tmp_path: Path, merge: Callable[..., dict[str, torch.Tensor]]
) -> None:
    family = save_family(tmp_path, "llama_untied")
    merge(recipe(family))
    for folder in (family / "law", tmp_path / "out"):
        headless = tensors_of(folder)
        # mergekit would take the embedding in its place.
        del headless["lm_head.weight"]
        (weights,) = folder.glob("*.safetensors")
        safetensors.torch.save_file(headless, weights, {"format": "pt"})
    (error,) = said(of_recipe(tmp_path, recipe(family)), "error")
    assert error.endswith("law: 1 tensors that mergekit reads are missing, such as lm_head.weight.")
    (error,) = said(check(tmp_path / "out"), "error")
    assert error.endswith("1 tensors that its recipe gives are missing, such as lm_head.weight.")


def test_a_base_with_more_than_mergekit_reads(family: Path, tmp_path: Path) -> None:
    more = {**tensors_of(family / "base"), "model.more.weight": torch.ones(2, 2)}
    safetensors.torch.save_file(more, family / "base" / "model.safetensors", {"format": "pt"})
    done = of_recipe(tmp_path, recipe(family))
    assert said(done, "error") == []
    assert said(done, "warning") == [
        f"warning: {family / 'base'}: 1 tensors are in no output, such as model.more.weight."
    ]


@pytest.fixture
def unplanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """mergekit is not to be asked."""

    def refuse(*_: object) -> None:
        raise AssertionError("mergekit was asked")

    monkeypatch.setattr(mergekit_reads, "planned", refuse)
    monkeypatch.setattr(mergekit_reads, "planned_again", refuse)


@pytest.mark.usefixtures("unplanned")
def test_names_that_only_the_merge_can_tell(tmp_path: Path) -> None:
    family = save_family(tmp_path, "gpt2")
    rename(family / "base", without_prefix)
    content = recipe(family)
    content["models"][0]["model"] += f"+{family / 'law'}"
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
    assert "or go by other names, which cannot be told here: a model of its recipe is" in warned


def test_names_that_mergekit_cannot_be_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family = save_family(tmp_path, "gpt2")
    rename(family / "base", without_prefix)
    content = recipe(family, dtype="float7")
    done = of_recipe(tmp_path, content)
    assert said(done, "warning")[0].startswith("warning: recipe: dtype is 'float7'")
    assert sum("40 tensors of the base model are missing" in e for e in said(done, "error")) == 2
    write_recipe(family / "law" / "mergekit_config.yml", content)
    (warned,) = said(check(family / "law"), "warning")
    assert "which cannot be told here: dtype is 'float7'" in warned
    del content["merge_method"]
    assert len(said(of_recipe(tmp_path, content), "error")) == 6
    # What it logs meanwhile would be a traceback.
    for name in ("base", "math", "law"):
        edit(family / name / "config.json", lambda held: held.update(architectures=["Unknown"]))
    assert said(of_recipe(tmp_path, recipe(family)), "error")
    assert caplog.records == []


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


def test_output_folders(family: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(family / "base")
    for output in (family / "base", link):
        done = of_recipe(tmp_path, recipe(family), f"--output={output}")
        assert "which the merge would overwrite" in done.stdout
    older = tmp_path / "older"
    shutil.copytree(family / "law", older)
    done = of_recipe(tmp_path, recipe(family), f"--output={older}")
    assert done.exit_code == 0
    assert "it holds 1 weight files already" in done.stdout


def test_merged_folders(family: Path, tmp_path: Path, run_yaml: Callable[..., Result]) -> None:
    assert run_yaml(recipe(family)).exit_code == 0
    out = tmp_path / "out"
    done = check(out, "--verify=all")
    assert done.exit_code == 0, done.output
    assert "tensors are what its recipe gives" in done.stdout
    assert check(out, "--verify=sample").exit_code == 0
    weights = out / "model.safetensors"
    if not weights.exists():
        (weights,) = out.glob("*.safetensors")
    tensors = tensors_of(out)
    kept = weights.read_bytes()

    def save(changed: Mapping[str, torch.Tensor]) -> None:
        safetensors.torch.save_file(dict(changed), weights, {"format": "pt"})

    name = "model.layers.2.mlp.down_proj.weight"
    save({**tensors, name: tensors[name] * 1.001})
    assert check(out).exit_code == 0
    mixed = check(out, "--verify=all")
    assert f"tensors are not what its recipe gives, such as {name}" in mixed.stdout
    broken = tensors[name].clone()
    broken[3, 3] = torch.nan
    save({**tensors, name: broken})
    assert f"1 tensors hold NaN or infinity, such as {name}" in check(out).stdout
    save({key: each for key, each in tensors.items() if key != name})
    lacking = check(out, "--verify=all").stdout
    assert "1 tensors that its recipe gives are missing" in lacking
    assert f"{len(tensors) - 1} of {len(tensors)} tensors are what its recipe gives" in lacking
    weights.write_bytes(kept[: len(kept) // 2])
    assert "truncated" in check(out).stdout
    weights.write_bytes(kept)
    (out / "tokenizer.json").rename(out / "gone")
    assert "there is no tokenizer" in check(out).stdout
    (out / "gone").rename(out / "tokenizer.json")
    (out / "config.json").write_text("", encoding="utf-8")
    assert "config.json is missing, empty or no JSON" in check(out).stdout


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_inputs_that_have_changed(
    method: str, family: Path, tmp_path: Path, run_yaml: Callable[..., Result]
) -> None:
    models = {"math": {"weight": 1.0}, "law": {"weight": 1.0}}
    assert run_yaml(recipe(family, method, models, parameters={"weight": 1.0})).exit_code == 0
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = tensors_of(family / "math")
    shorter = {**tensors, name: tensors[name][:10].contiguous()}
    del tensors[name]
    for changed in (tensors, shorter):
        weights = family / "math" / "model.safetensors"
        safetensors.torch.save_file(changed, weights, {"format": "pt"})
        (error,) = said(check(tmp_path / "out", "--verify=all"), "error")
        assert error.startswith(f"error: {tmp_path / 'out'}: its recipe cannot be merged again: ")
        assert name in error


def test_a_merge_without_base(
    family: Path,
    tmp_path: Path,
    run_yaml: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = recipe(family, "linear", {"math": {"weight": 1.0}, "law": {"weight": 1.0}})
    del content["base_model"]
    assert run_yaml(content).exit_code == 0
    asked: list[str] = []
    monkeypatch.setattr(
        checkpoint_files, "_of_hub", lambda name, model: asked.append(name) or (None, [])
    )
    done = check(tmp_path / "out")
    assert asked == []
    assert said(done, "note") == [
        f"note: {tmp_path / 'out'}: its recipe names no base model to compare it with."
    ]


def test_random_methods_cannot_be_verified(
    family: Path, tmp_path: Path, run_yaml: Callable[..., Result]
) -> None:
    models = {"math": {"weight": 1.0, "density": 0.5}}
    assert run_yaml(recipe(family, "dare_linear", models)).exit_code == 0
    done = check(tmp_path / "out", "--verify=all")
    assert done.exit_code == 0
    assert "its weights cannot be verified" in done.stdout


def test_shards_over_an_older_merge(
    family: Path, tmp_path: Path, run_yaml: Callable[..., Result]
) -> None:
    assert run_yaml(recipe(family), "--out-shard-size", "20000").exit_code == 0
    out = tmp_path / "out"
    first = sorted(out.glob("*.safetensors"))[0]
    shutil.copy(first, out / "model-00099-of-00099.safetensors")
    done = check(out)
    assert "model-00099-of-00099.safetensors is not in the index" in done.stdout
    shutil.copy(first, out / "model.safetensors")
    assert "transformers loads the single file" in check(out).stdout


def test_as_json(family: Path, tmp_path: Path) -> None:
    content = recipe(family)
    content["dtpe"] = 1
    found = json.loads(of_recipe(tmp_path, content, "--json").stdout)
    assert found[0]["severity"] == "error"
    assert set(found[0]) == {"severity", "subject", "sentence"}


def test_misuse(family: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yml", recipe(family))
    assert "--verify is for a folder" in check(path, "--verify=all").output
    assert "are for a recipe" in check(family, "--sample").output


def test_neither_torch_nor_mergekit_is_needed(family: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yml", recipe(family))
    script = (
        "import sys\n"
        "from dppa_mergekit.cli.main import main\n"
        f"main(['check', {str(path)!r}, '--sample'], standalone_mode=False)"
    )
    wrapped = (
        f"import sys\ntry:\n    exec({script!r})\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'mergekit' not in sys.modules"
    )
    environment = {**os.environ, "DPPA_MERGEKIT_AUTOLOAD": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", wrapped], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[str, Path, Path]:
    """A model with a LoRA, the cache folder, and what mergekit calls its merge there."""
    from mergekit.common import ModelReference

    save_family(tmp_path)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    safetensors.torch.save_file({"a": torch.ones(1)}, adapter / "adapter_model.safetensors")
    cache = tmp_path / "cache"
    reference = ModelReference.parse(f"{tmp_path / 'math'}+{adapter}")
    assert reference.lora is not None
    held = cache / f"{reference.model._unique_id()}_{reference.lora._unique_id()}"
    return str(reference), cache, held


def test_lora_cache(adapted: tuple[str, Path, Path], tmp_path: Path) -> None:
    model, cache, held = adapted
    content = recipe(tmp_path)
    content["models"][0]["model"] = model

    def found() -> list[str]:
        done = of_recipe(tmp_path, content, f"--lora-cache={cache}")
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


def test_names_on_the_hub(tmp_path: Path, hub: Hub) -> None:
    save_family(hub.root / "me", num_hidden_layers=3)
    content = recipe(Path("me"))
    content["models"][0]["parameters"]["amplfy_90"] = 2
    path = write_recipe(tmp_path / "recipe.yml", content)
    done = hub.command("check", str(path), cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stdout
    assert "amplify_90" in errors[0]
    # Headers, and no weights.
    size = (hub.root / "me" / "math" / "model.safetensors").stat().st_size
    sent = [line.split() for line in (hub.root / "sent").read_text(encoding="utf-8").splitlines()]
    of_weights = sum(int(number) for number, file in sent if file.endswith(".safetensors"))
    # The client asks for the first 100 kB of each: a header is seldom longer.
    assert 0 < of_weights <= 3 * 100_001 < 3 * size

    content["models"][0]["model"] = "me/nowhere"
    write_recipe(path, content)
    done = hub.command("check", str(path), cwd=tmp_path)
    assert "me/nowhere" in done.stdout


def test_other_names_on_the_hub(tmp_path: Path, hub: Hub) -> None:
    save_family(hub.root / "me", "gpt2")
    rename(hub.root / "me" / "base", without_prefix)
    path = write_recipe(tmp_path / "recipe.yml", recipe(Path("me")))
    done = hub.command("check", str(path), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the merge itself will show whether mergekit knows them" in done.stdout


def test_a_shape_on_the_hub(tmp_path: Path, hub: Hub) -> None:
    save_family(hub.root / "me")
    new_model("llama", 0, hidden_size=40).save_pretrained(hub.root / "me" / "law")
    path = write_recipe(tmp_path / "recipe.yml", recipe(Path("me")))
    done = hub.command("check", str(path), cwd=tmp_path)
    assert done.returncode == 1
    assert "me/law" in done.stdout
    assert "40" in done.stdout
