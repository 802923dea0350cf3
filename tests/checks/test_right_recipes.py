"""Recipes that mergekit merges, of every kind: `check` finds no error and warns of nothing."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import peft
import pytest
import torch
import yaml
from check_command import check, said
from checkpoint_edits import edit
from checkpoints import VOCABULARY, recipe, save_family, tokenizer, write_recipe
from oracle_merges import pickled
from sliced_recipes import sliced
from transformers import LlamaForCausalLM

Content = dict[str, object]

BOTH = {"math": {"weight": 0.6}, "law": {"weight": 0.4}}
HALF = {"math": {"weight": 0.6, "density": 0.5}, "law": {"weight": 0.4, "density": 0.5}}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of families, which no test changes."""
    folder = tmp_path_factory.mktemp("families")
    plain = save_family(folder / "plain")
    save_family(folder / "half", dtype=torch.bfloat16)
    save_family(folder / "sharded", shard="30KB")
    for architecture in ("llama_untied", "gpt2", "mixtral", "t5", "bert", "qwen3"):
        save_family(folder / architecture, architecture)
    pickled(plain, folder / "pickled", 1)
    pickled(plain, folder / "pickled_shards", 3)
    extended = save_family(folder / "extended")
    model = LlamaForCausalLM.from_pretrained(extended / "law")
    model.resize_token_embeddings(VOCABULARY + 1, mean_resizing=False)
    model.save_pretrained(extended / "law")
    more = tokenizer()
    more.add_tokens(["<statute>"])
    more.save_pretrained(extended / "law")
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"])
    base = LlamaForCausalLM.from_pretrained(plain / "base")
    peft.get_peft_model(base, adapter).save_pretrained(folder / "adapter")
    (folder / "links").mkdir()
    for name in ("base", "math", "law"):
        (folder / "links" / name).symlink_to(plain / name)
    return folder


def with_parameters(**parameters: object) -> Callable[[Path], Content]:
    models = {"math": parameters, "law": {"weight": 0.4}}
    return lambda families: recipe(families / "plain", "dppa", models)


def of(
    name: str,
    method: str = "dppa",
    models: Mapping[str, Mapping[str, object]] | None = None,
    **changes: object,
) -> Callable[[Path], Content]:
    return lambda families: recipe(families / name, method, models or BOTH, **changes)


def without_base(families: Path) -> Content:
    content = recipe(families / "plain", "linear", BOTH)
    del content["base_model"]
    return content


def mixed(families: Path) -> Content:
    content = recipe(families / "plain", "dppa", BOTH, dtype="float32")
    content["models"][0]["model"] = str(families / "half" / "math")
    content["models"][1]["model"] = str(families / "sharded" / "law")
    return content


def mapped(families: Path) -> Content:
    content = recipe(families / "plain", "dppa", BOTH)
    content["base_model"] = {"model": {"path": content["base_model"]}}
    content["models"][0]["model"] = {"model": {"path": content["models"][0]["model"]}}
    return content


def as_module(families: Path) -> Content:
    content = recipe(families / "plain", "dppa", BOTH)
    content["modules"] = {"default": {"models": content.pop("models")}}
    return content


def shared(families: Path) -> Content:
    content = recipe(families / "plain", "dppa", {"math": {}, "law": {"density": 0.1}})
    return {**content, "parameters": {"weight": 0.5, "lambda": 0.9, "normalize": True}}


def base_listed(families: Path) -> Content:
    content = recipe(families / "plain", "dppa", BOTH)
    return {**content, "models": [{"model": content["base_model"]}, *content["models"]]}


def adapted(families: Path) -> Content:
    content = recipe(families / "plain", "dppa", BOTH)
    content["models"][0]["model"] = f"{families / 'plain' / 'base'}+{families / 'adapter'}"
    return content


def frankenmerge(families: Path) -> Content:
    sources = [("math", [0, 2]), ("law", [1, 3])]
    return {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": str(families / "plain" / name), "layer_range": layers}]}
            for name, layers in sources
        ],
        "dtype": "float32",
    }


def rows(family: Path) -> Content:
    token = {"kind": "model_token", "model": str(family / "base"), "token": "w1"}
    rows = {
        "<statute>": {"source": str(family / "law"), "force": True},
        "<new>": {"source": {"kind": "zero"}},
        "<newer>": {"source": token},
    }
    return {"source": "union", "tokens": rows, "pad_to_multiple_of": 8}


def based_slices(families: Path) -> Content:
    content = sliced(families / "plain", [0, 2], [2, 3], method="task_arithmetic")
    base = content.pop("base_model")
    slices = [{**each, "base_model": base} for each in content["slices"]]
    return {**content, "slices": slices}


def overridden(families: Path) -> Content:
    """A recipe that names the architecture, which config.json does not."""
    folder = families / "nameless"
    if not folder.exists():
        shutil.copytree(families / "plain", folder)
        for name in ("base", "math", "law"):
            edit(folder / name / "config.json", lambda held: held.pop("architectures"))
    content = recipe(folder, "dppa", BOTH)
    for holder, key in ((content, "base_model"), *((each, "model") for each in content["models"])):
        holder[key] = {
            "model": {"path": holder[key]},
            "lora": None,
            "override_architecture": "LlamaForCausalLM",
        }
    return content


FILTERS = [
    {"filter": "self_attn", "value": [0.1, 0.5, 0.9]},
    {"filter": "mlp", "value": 0.3},
    {"value": 0.2},
]

RECIPES: dict[str, Callable[[Path], Content]] = {
    "dppa": of("plain"),
    "dppa_ties": of("plain", "dppa_ties"),
    "dp": of("plain", "dp"),
    "owl": of("plain", "owl"),
    "dare_dpa": of("plain", "dare_dpa"),
    "dppa_regmean": of("plain", "dppa_regmean"),
    "dare_regmean": of("plain", "dare_regmean"),
    "task_arithmetic": of("plain", "task_arithmetic"),
    "ties": of("plain", "ties", HALF),
    "dare_linear": of("plain", "dare_linear", HALF),
    "della": of("plain", "della", HALF),
    "breadcrumbs": of("plain", "breadcrumbs", HALF),
    "model_stock": of("plain", "model_stock", {"math": {}, "law": {}}),
    "slerp": of("plain", "slerp", {"math": {}}, parameters={"t": [0, 0.5, 1]}),
    "linear without a base": without_base,
    "passthrough": frankenmerge,
    "gradient": with_parameters(weight=[0.1, 0.5, 0.9]),
    "short gradient": with_parameters(weight=[0, 1]),
    "filters": with_parameters(weight=1, density=FILTERS),
    "factors": with_parameters(weight=1, density=0.3, amplify_90=2, amplify_70=0.5),
    "density 1": with_parameters(weight=1, density=1),
    "density 0": with_parameters(weight=1, density=0),
    "negative weight": with_parameters(weight=-0.3),
    "shared parameters": shared,
    "slices in order": lambda families: sliced(families / "plain", [0, 2], [2, 3]),
    "one slice": lambda families: sliced(families / "plain", [0, 3]),
    "modules": as_module,
    "base listed": base_listed,
    "mappings": mapped,
    "links": of("links"),
    "shards": of("sharded"),
    "pickled": of("pickled"),
    "pickled shards": of("pickled_shards"),
    "mixed dtypes": mixed,
    "bfloat16": of("half"),
    "dtype": of("plain", dtype="bfloat16"),
    "out_dtype": of("plain", dtype="float32", out_dtype="float16"),
    "tokenizer of the base": of("extended", tokenizer={"source": "base"}),
    "union of tokenizers": of("extended", tokenizer={"source": "union"}),
    "tokenizer_source": of("extended", tokenizer_source="union"),
    "tokens": lambda families: recipe(
        families / "extended", "dppa", BOTH, tokenizer=rows(families / "extended")
    ),
    "chat template": of("plain", chat_template="auto"),
    "named chat template": of("plain", chat_template="chatml"),
    "written chat template": of("plain", chat_template="{{ messages[0]['content'] }}"),
    "name": lambda families: {"name": "math", **recipe(families / "plain", "dppa", BOTH)},
    "name that is no text": lambda families: {
        "name": 7,
        **recipe(families / "plain", "dppa", BOTH),
    },
    "bases of slices": based_slices,
    "architecture in the recipe": overridden,
    "untied": of("llama_untied"),
    "gpt2": of("gpt2"),
    "mixtral": of("mixtral"),
    "t5": of("t5"),
    "bert": of("bert"),
    "qwen3": of("qwen3"),
    "lora": adapted,
}


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_is_found(name: str, families: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yml", RECIPES[name](families))
    done = check(path, "--output", str(tmp_path / "new"))
    assert said(done, "error") + said(done, "warning") == []
    assert done.exit_code == 0


def test_nothing_is_found_in_stages(families: Path, tmp_path: Path) -> None:
    first = {"name": "first", **RECIPES["dppa"](families)}
    last = RECIPES["dare_dpa"](families)
    last["models"][0]["model"] = "first"
    path = tmp_path / "multi.yml"
    path.write_text(yaml.safe_dump_all([first, last]), encoding="utf-8")
    done = check(path)
    assert said(done, "error") + said(done, "warning") == []
