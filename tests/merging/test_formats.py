"""Checkpoint formats, dtypes, recipe forms and mergekit's other ways in: all the same merge."""

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import peft
import pytest
import safetensors.torch
import torch
import transformers
import yaml
from checkpoints import (
    HIDDEN,
    VOCABULARY,
    fine_tune,
    new_model,
    recipe,
    save_family,
    tensors_of,
    tokenizer,
    unequal,
    write_recipe,
)
from click.testing import CliRunner
from conftest import Merge
from mergekit.io.tasks import LoaderCache
from mergekit.merge_methods.api import merge_state_dicts, merge_tensors
from mergekit.merge_methods.base import PerGroupValues
from mergekit.scripts.merge_raw_pytorch import SimpleLoaderCache
from mergekit.scripts.merge_raw_pytorch import main as mergekit_pytorch
from mergekit.scripts.multimerge import main as mergekit_multi

from dppa_mergekit.method_table import VARIANTS

Tensors = dict[str, torch.Tensor]
Parameters = Mapping[str, Any]

MODELS: dict[str, dict[str, float]] = {
    "math": {"weight": 0.6, "density": 0.2, "amplify_90": 2.1, "amplify_80": 1.4},
    "law": {"weight": 0.5, "density": 0.3, "amplify_dense": 0.9},
}
METHODS = [variant.name for variant in VARIANTS]


@pytest.fixture(autouse=True)
def _fresh_raw_loaders() -> Iterator[None]:
    yield
    SimpleLoaderCache().loaders.clear()


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Llama in float32."""
    return save_family(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in bfloat16."""
    return save_family(tmp_path_factory.mktemp("llama_bf16"), dtype=torch.bfloat16)


def expected(
    models: Sequence[Mapping[str, torch.Tensor]],
    parameters: Sequence[Parameters],
    method: str = "dppa",
    shared: Parameters | None = None,
    dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensors:
    """The oracle's merge of base and tuned tensors, cast as mergekit casts.

    `dtype`: of all tensors before the merge. A merged tensor has the widest dtype of its inputs,
    and is cast from that to `out_dtype`.
    """
    names = list(models[0])
    cast = [{n: t.to(dtype) if dtype else t for n, t in tensors.items()} for tensors in models]
    outputs = {name: cast[0][name].dtype for name in names}
    for tensors in cast[1:]:
        for name in names:
            outputs[name] = torch.promote_types(outputs[name], tensors[name].dtype)
    wide = {n: torch.promote_types(torch.float32, dtype) for n, dtype in outputs.items()}
    arrays = [{n: tensors[n].to(wide[n]).numpy() for n in names} for tensors in cast]
    merged = oracle.merge(arrays[0], arrays[1:], method, parameters, shared)
    result = {name: torch.from_numpy(array).to(outputs[name]) for name, array in merged.items()}
    return {name: tensor.to(out_dtype) for name, tensor in result.items()} if out_dtype else result


def base_and_tuned(folder: Path) -> list[Tensors]:
    return [tensors_of(folder / name) for name in ("base", *MODELS)]


@functools.cache
def of_family(folder: Path, **options: Any) -> Tensors:
    """As `expected`, for the models of a folder and the parameters that the recipes here give."""
    return expected(base_and_tuned(folder), list(MODELS.values()), **options)


def converted(source: Path, folder: Path, convert: Callable[[str, Tensors], Tensors]) -> Path:
    """The family with the tensors of every model replaced: convert(model, its tensors)."""
    for name in ("base", *MODELS):
        shutil.copytree(source / name, folder / name)
        path = folder / name / "model.safetensors"
        safetensors.torch.save_file(
            convert(name, safetensors.torch.load_file(path)), path, {"format": "pt"}
        )
    return folder


def digests(folder: Path) -> dict[str, str]:
    """Of all files below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Files


def test_sharded_checkpoints(family: Path, tmp_path: Path, merge: Merge) -> None:
    sharded = save_family(tmp_path / "sharded", shard="30KB")
    for name in ("base", *MODELS):
        assert (sharded / name / "model.safetensors.index.json").exists()
        assert len(list((sharded / name).glob("*.safetensors"))) > 3
    assert not unequal(merge(recipe(sharded, models=MODELS)), of_family(family))


def test_models_sharded_differently(family: Path, tmp_path: Path, merge: Merge) -> None:
    save_family(tmp_path / "small", shard="20KB")
    mixed = recipe(tmp_path / "small", models=MODELS)
    mixed["base_model"] = str(family / "base")
    assert not unequal(merge(mixed), of_family(family))


def pickled(source: Path, folder: Path, shards: int) -> Path:
    """The family as PyTorch's own files, with an index where there is more than one."""
    for name in ("base", *MODELS):
        ignored = shutil.ignore_patterns("*.safetensors")
        shutil.copytree(source / name, folder / name, ignore=ignored)
        tensors = tensors_of(source / name)
        if shards == 1:
            torch.save(tensors, folder / name / "pytorch_model.bin")
            continue
        places: dict[str, str] = {}
        for number in range(shards):
            file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
            part = {n: tensors[n] for n in list(tensors)[number::shards]}
            torch.save(part, folder / name / file)
            places.update(dict.fromkeys(part, file))
        index = {"metadata": {}, "weight_map": places}
        (folder / name / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("options", [(), ("--lazy-unpickle",)], ids=["eager", "lazy"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pickled_checkpoints(
    dtype: str,
    shards: int,
    options: tuple[str, ...],
    family: Path,
    bfloat16: Path,
    tmp_path: Path,
    merge: Merge,
) -> None:
    source = family if dtype == "float32" else bfloat16
    folder = pickled(source, tmp_path / "pickled", shards)
    assert not unequal(merge(recipe(folder, models=MODELS), *options), of_family(source))


def test_inputs_are_left_as_they_were(family: Path, bfloat16: Path, merge: Merge) -> None:
    for folder in (family, bfloat16):
        before = digests(folder)
        merge(recipe(folder, models=MODELS, dtype="float32"), "--clone-tensors")
        assert digests(folder) == before


# Dtypes


@pytest.mark.parametrize("method", ["dppa", "dppa_ties", "dp", "owl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dtype_of_the_checkpoints(
    dtype: torch.dtype, method: str, tmp_path: Path, merge: Merge
) -> None:
    folder = save_family(tmp_path / "family", dtype=dtype)
    wanted = of_family(folder, method=method)
    assert {tensor.dtype for tensor in wanted.values()} == {dtype}
    assert not unequal(merge(recipe(folder, method, MODELS)), wanted)


def test_float64_is_not_merged_in_float32(tmp_path: Path, merge: Merge) -> None:
    def widened(model: str, tensors: Tensors) -> Tensors:
        generator = torch.Generator().manual_seed(len(model))
        return {
            name: tensor.double() + 1e-12 * torch.rand(tensor.shape, generator=generator)
            for name, tensor in tensors.items()
        }

    save_family(tmp_path / "single")
    folder = converted(tmp_path / "single", tmp_path / "double", widened)
    wanted = of_family(folder)
    assert any(not torch.equal(t, t.float().double()) for t in wanted.values())
    assert not unequal(merge(recipe(folder, models=MODELS)), wanted)


def test_recipe_dtype_narrows_before_the_statistics(family: Path, merge: Merge) -> None:
    wanted = of_family(family, dtype=torch.bfloat16)
    late = {name: tensor.bfloat16() for name, tensor in of_family(family).items()}
    assert unequal(late, wanted)
    assert not unequal(merge(recipe(family, models=MODELS, dtype="bfloat16")), wanted)


def test_recipe_dtype_widens(bfloat16: Path, merge: Merge) -> None:
    wanted = of_family(bfloat16, dtype=torch.float32)
    assert unequal({n: t.bfloat16().float() for n, t in wanted.items()}, wanted)
    assert not unequal(merge(recipe(bfloat16, models=MODELS, dtype="float32")), wanted)


@pytest.mark.parametrize(
    ("stored", "dtypes"),
    [
        ("float32", {"out_dtype": "bfloat16"}),
        ("float32", {"out_dtype": "float16"}),
        ("bfloat16", {"out_dtype": "float32"}),
        ("bfloat16", {"dtype": "float32", "out_dtype": "bfloat16"}),
        ("float32", {"dtype": "bfloat16", "out_dtype": "float32"}),
        ("float32", {"dtype": "float64", "out_dtype": "float32"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
def test_out_dtype(
    stored: str, dtypes: dict[str, str], family: Path, bfloat16: Path, merge: Merge
) -> None:
    folder = family if stored == "float32" else bfloat16
    wanted = of_family(folder, **{key: getattr(torch, value) for key, value in dtypes.items()})
    assert not unequal(merge(recipe(folder, models=MODELS, **dtypes)), wanted)


def is_norm(name: str) -> bool:
    return "norm" in name


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float32", "float16"])
@pytest.mark.parametrize("norms", [torch.float32, torch.bfloat16])
def test_dtypes_mixed_within_a_checkpoint(
    norms: torch.dtype, dtype: str | None, family: Path, tmp_path: Path, merge: Merge
) -> None:
    others = torch.bfloat16 if norms == torch.float32 else torch.float32

    def mix(_: str, tensors: Tensors) -> Tensors:
        return {n: t.to(norms if is_norm(n) else others) for n, t in tensors.items()}

    folder = converted(family, tmp_path / "mixed", mix)
    changes = {} if dtype is None else {"dtype": dtype}
    wanted = of_family(folder, **{key: getattr(torch, each) for key, each in changes.items()})
    assert not unequal(merge(recipe(folder, models=MODELS, **changes)), wanted)


@pytest.mark.parametrize("method", ["dppa", "dppa_ties"])
@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.bfloat16),
        (torch.float32, torch.float64),
        (torch.float64, torch.bfloat16),
    ],
)
def test_dtypes_of_base_and_tuned_differ(
    base: torch.dtype,
    tuned: torch.dtype,
    method: str,
    family: Path,
    tmp_path: Path,
    merge: Merge,
) -> None:
    def convert(model: str, tensors: Tensors) -> Tensors:
        return {n: t.to(base if model == "base" else tuned) for n, t in tensors.items()}

    folder = converted(family, tmp_path / "differ", convert)
    merged = merge(recipe(folder, method, MODELS))
    assert not unequal(merged, of_family(folder, method=method))
    sums = merge(recipe(folder, "task_arithmetic", MODELS), output="sums")
    assert {n: t.dtype for n, t in merged.items()} == {n: t.dtype for n, t in sums.items()}


def test_one_linear_in_another_dtype(family: Path, tmp_path: Path, merge: Merge) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def convert(model: str, tensors: Tensors) -> Tensors:
        return {**tensors, name: tensors[name].to(torch.float64 if model == "law" else None)}

    folder = converted(family, tmp_path / "one", convert)
    merged = merge(recipe(folder, models=MODELS))
    assert not unequal(merged, of_family(folder))
    assert merged[name].dtype == torch.float64


# Vocabularies, ties, adapters


@pytest.fixture
def adapted(family: Path, tmp_path: Path) -> Path:
    """A LoRA adapter on the base model."""
    model = transformers.LlamaForCausalLM.from_pretrained(family / "base")
    targets = ["q_proj", "v_proj", "up_proj", "down_proj"]
    torch.manual_seed(5)
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_lora_reference(family: Path, adapted: Path, tmp_path: Path, merge: Merge) -> None:
    whole = transformers.LlamaForCausalLM.from_pretrained(family / "base")
    whole = peft.PeftModel.from_pretrained(whole, adapted).merge_and_unload()
    whole.save_pretrained(tmp_path / "whole")
    parameters = [{"weight": 0.8, "density": 0.2, "amplify_90": 1.5}, MODELS["law"]]
    content = recipe(family, models={"law": MODELS["law"]})
    reference = {"model": f"{family / 'base'}+{adapted}", "parameters": parameters[0]}
    content["models"] = [reference, *content["models"]]
    base, law = tensors_of(family / "base"), tensors_of(family / "law")
    wanted = expected([base, tensors_of(tmp_path / "whole"), law], parameters)
    cache = ("--lora-merge-cache", str(tmp_path / "cache"))
    assert not unequal(merge(content, *cache), wanted)
    assert not unequal(merge(content, *cache, output="cached"), wanted)


@pytest.fixture(params=["llama", "llama_untied"])
def extended(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A family of one vocabulary, and the same where every tuned model has tokens of its own."""
    plain = save_family(tmp_path / "plain", request.param)
    more = tmp_path / "extended"
    shutil.copytree(plain / "base", more / "base")
    for name, words in (("math", ["<sum>", "<proof>"]), ("law", ["<statute>"])):
        model = transformers.LlamaForCausalLM.from_pretrained(plain / name)
        torch.manual_seed(len(words))
        model.resize_token_embeddings(VOCABULARY + len(words), mean_resizing=False)
        model.save_pretrained(more / name)
        words_too = tokenizer()
        words_too.add_tokens(words)
        words_too.save_pretrained(more / name)
    return plain, more


@pytest.mark.parametrize(("source", "tokens"), [("union", VOCABULARY + 3), ("base", VOCABULARY)])
def test_tokenizers_that_differ(
    source: str, tokens: int, extended: tuple[Path, Path], tmp_path: Path, merge: Merge
) -> None:
    plain, more = extended
    models = {name: {**MODELS[name], "amplify_dense": 1.0} for name in MODELS}
    merged = merge(recipe(more, models=models, tokenizer={"source": source}))
    without = merge(recipe(plain, models=models), output="without")
    assert set(merged) == set(without)
    vocabulary = [name for name in merged if merged[name].shape == (tokens, HIDDEN)]
    assert vocabulary == [n for n in merged if "embed_tokens" in n or "lm_head" in n]
    inside = [name for name in merged if name not in vocabulary]
    assert not unequal({n: merged[n] for n in inside}, {n: without[n] for n in inside})

    sums = recipe(more, "task_arithmetic", models, tokenizer={"source": source})
    summed = merge(sums, output="sums")
    assert not unequal({n: merged[n] for n in vocabulary}, {n: summed[n] for n in vocabulary})

    model, info = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert model.config.vocab_size == tokens
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "out")) == tokens


def tie(folder: Path, name: str, tied: bool) -> None:
    """Store one model of a family with or without its own output head."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder / name)
    if not tied:
        model.config.tie_word_embeddings = False
        head = model.get_input_embeddings().weight.detach().clone()
        generator = torch.Generator().manual_seed(11)
        head += 1e-3 * torch.randn(head.shape, generator=generator)
        model.lm_head.weight = torch.nn.Parameter(head)
    shutil.rmtree(folder / name)
    model.save_pretrained(folder / name)


def test_untied_base_and_tied_models(tmp_path: Path, merge: Merge) -> None:
    folder = save_family(tmp_path / "family")
    tie(folder, "base", tied=False)
    models = [tensors_of(folder / name) for name in ("base", *MODELS)]
    for tensors in models[1:]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    wanted = expected(models, list(MODELS.values()))
    assert not unequal(merge(recipe(folder, models=MODELS)), wanted)


def test_tied_base_and_an_untied_model(tmp_path: Path, merge: Merge) -> None:
    folder = save_family(tmp_path / "family")
    tie(folder, "math", tied=False)
    models = [tensors_of(folder / name) for name in ("base", *MODELS)]
    for tensors in models:
        tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    wanted = expected(models, list(MODELS.values()))
    assert not unequal(merge(recipe(folder, models=MODELS)), wanted)


# Gradients and filters

LAYERS = 3


def position(name: str) -> float:
    """The t of mergekit's gradients: from 0 in the first layer to 1 in the last; 0 outside."""
    block = oracle.classify(name, ()).block
    return 0.0 if block is None else block / (LAYERS - 1)


def resolve(setting: Any, name: str) -> Any:
    """What mergekit makes of a recipe's value for one tensor."""
    if not isinstance(setting, list):
        return setting
    if isinstance(setting[0], dict):
        for condition in setting:
            if condition.get("filter", "*") in ("*", *filters_in(name)):
                return resolve(condition["value"], name)
        return None
    scaled = position(name) * (len(setting) - 1)
    first = int(scaled)
    if isinstance(setting[0], (bool, str)):
        return setting[first]
    rest = scaled - first
    return (1 - rest) * setting[first] + rest * setting[min(first + 1, len(setting) - 1)]


def filters_in(name: str) -> list[str]:
    return [part for part in ("self_attn", "mlp", "layers.1.", "norm", "embed") if part in name]


def by_name(setting: Any) -> Callable[[str], Any]:
    return lambda name: resolve(setting, name)


FORMS: dict[str, Callable[[Any, Any, Any], list[Any]]] = {
    "gradient": lambda low, middle, high: [low, middle, high],
    "two ends": lambda low, middle, high: [high, low],
    "filters": lambda low, middle, high: [
        {"filter": "self_attn", "value": low},
        {"filter": "layers.1.", "value": middle},
        {"value": high},
    ],
    "gradient in a filter": lambda low, middle, high: [
        {"filter": "mlp", "value": [high, low]},
        {"filter": "embed", "value": low},
        {"filter": "*", "value": middle},
    ],
    "no filter holds": lambda low, middle, high: [
        {"filter": "self_attn", "value": low},
        {"filter": "mlp", "value": high},
    ],
}

PER_MODEL: dict[str, tuple[float, float, float]] = {
    "weight": (0.2, 0.5, 0.9),
    "density": (0.1, 0.25, 0.42),
    **{f"amplify_{rate}": (0.5, 1.3, 2.0) for rate in oracle.RATES},
    "amplify_dense": (0.0, 0.7, 1.6),
}
SHARED: dict[str, tuple[Any, Any, Any]] = {
    "lambda": (0.5, 1.2, -0.3),
    "normalize": (True, False, True),
    "max_fluctuation": (0.0, 0.05, 0.19),
    "significance": ("count", "magnitude", "count"),
    "significance_multiple": (1.0, 3.0, 5.5),
    "block_significance_multiple": (1.5, 2.5, 5.0),
}


def test_every_parameter_is_tried_with_gradients_and_filters() -> None:
    (variant,) = [each for each in VARIANTS if each.name == "dppa"]
    per_model = {each.name for each in variant.parameters if each.per_model}
    shared = {each.name for each in variant.parameters if not each.per_model}
    assert per_model == set(PER_MODEL)
    assert shared == set(SHARED)


def two_models(parameter: str, setting: Any = None) -> dict[str, dict[str, Any]]:
    """Dense enough for the partition that `parameter` amplifies to hold something."""
    density = 0.25
    if parameter.removeprefix("amplify_").isdecimal():
        density = min(0.95, 1.05 - int(parameter.removeprefix("amplify_")) / 100)
    models: dict[str, dict[str, Any]] = {
        "math": {"weight": 0.6, "density": density},
        "law": {"weight": 0.5, "density": density + 0.03},
    }
    if setting is not None:
        models["math"][parameter] = setting
    return models


@pytest.mark.parametrize("form", ["two ends", "filters", "gradient in a filter"])
@pytest.mark.parametrize("parameter", PER_MODEL)
def test_parameter_of_one_model(parameter: str, form: str, family: Path, merge: Merge) -> None:
    setting = FORMS[form](*PER_MODEL[parameter])
    given = [*two_models(parameter, by_name(setting)).values()]
    wanted = expected(base_and_tuned(family), given)
    merged = merge(recipe(family, models=two_models(parameter, setting)))
    assert not unequal(merged, wanted)
    plain = merge(recipe(family, models=two_models(parameter)), output="plain")
    assert unequal(plain, wanted)


@pytest.mark.parametrize("parameter", PER_MODEL)
def test_parameter_of_all_models(parameter: str, family: Path, merge: Merge) -> None:
    setting = FORMS["gradient"](*PER_MODEL[parameter])
    models = two_models(parameter)
    for values in models.values():
        values.pop(parameter, None)
    given = [{**values, parameter: by_name(setting)} for values in models.values()]
    merged = merge(recipe(family, models=models, parameters={parameter: setting}))
    assert not unequal(merged, expected(base_and_tuned(family), given))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("parameter", SHARED)
def test_shared_parameter(parameter: str, form: str, family: Path, merge: Merge) -> None:
    setting = FORMS[form](*SHARED[parameter])
    wanted = expected(
        base_and_tuned(family), [*MODELS.values()], shared={parameter: by_name(setting)}
    )
    assert unequal(of_family(family), wanted)
    merged = merge(recipe(family, models=MODELS, parameters={parameter: setting}))
    assert not unequal(merged, wanted)


def test_a_model_falls_back_on_the_recipe_where_no_filter_holds(family: Path, merge: Merge) -> None:
    own = [{"filter": "mlp", "value": 0.4}]
    everywhere = [{"filter": "layers.1.", "value": 0.15}]

    def density(name: str) -> float | None:
        return resolve(own, name) or resolve(everywhere, name)

    models = {"math": {"weight": 1.0, "density": own}, "law": {"weight": 0.5}}
    given = [{"weight": 1.0, "density": density}, {"weight": 0.5, "density": by_name(everywhere)}]
    merged = merge(recipe(family, models=models, parameters={"density": everywhere}))
    assert not unequal(merged, expected(base_and_tuned(family), given))


@pytest.mark.parametrize("parameter", ["weight", "density", "lambda", "normalize"])
def test_consensus_with_gradients(parameter: str, family: Path, merge: Merge) -> None:
    values = {**PER_MODEL, **SHARED}[parameter]
    setting = FORMS["gradient"](*values)
    models = {name: {k: v for k, v in MODELS[name].items() if k != parameter} for name in MODELS}
    given: list[Parameters] = list(models.values())
    shared: Parameters = {parameter: by_name(setting)}
    if parameter in PER_MODEL:
        given, shared = [{**own, **shared} for own in given], {}
    wanted = expected(base_and_tuned(family), given, "dppa_ties", shared)
    merged = merge(recipe(family, "dppa_ties", models, parameters={parameter: setting}))
    assert not unequal(merged, wanted)


@pytest.mark.parametrize(
    ("parameter", "low", "high"),
    [("seed", 3, 8), ("density", 0.2, 0.45), ("amplify_90", 0.5, 1.7), ("weight", 0.3, 0.9)],
)
def test_random_partitions_with_filters_equal_plain_merges(
    parameter: str, low: float, high: float, family: Path, merge: Merge
) -> None:
    def merged(setting: Any, output: str) -> Tensors:
        models = {name: dict(MODELS[name]) for name in MODELS}
        for values in models.values():
            values.pop(parameter, None)
        content = recipe(family, "dare_dpa", models, parameters={parameter: setting})
        return merge(content, output=output)

    setting = [{"filter": "layers.1.", "value": low}, {"value": high}]
    wanted_low, wanted_high = merged(low, "low"), merged(high, "high")
    linear = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(wanted_low[linear], wanted_high[linear])
    wanted = {n: (wanted_low if "layers.1." in n else wanted_high)[n] for n in wanted_low}
    assert not unequal(merged(setting, "filtered"), wanted)


# Slices and modules


def sliced(folder: Path, ranges: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Slices that keep every layer where it is."""
    return [
        {
            "sources": [
                {"model": str(folder / "base"), "layer_range": list(each)},
                *(
                    {"model": str(folder / n), "layer_range": list(each), "parameters": MODELS[n]}
                    for n in MODELS
                ),
            ]
        }
        for each in ranges
    ]


@pytest.mark.parametrize("ranges", [[(0, 2), (2, 3)], [(0, 3)], [(0, 1), (1, 2), (2, 3)]])
def test_slices_in_place(ranges: list[tuple[int, int]], family: Path, merge: Merge) -> None:
    content = recipe(family)
    content.pop("models")
    merged = merge({**content, "slices": sliced(family, ranges)})
    assert not unequal(merged, of_family(family))


@pytest.mark.parametrize("form", ["models", "slices"])
def test_modules(form: str, family: Path, merge: Merge) -> None:
    content = recipe(family, models=MODELS)
    models = content.pop("models")
    module = (
        {"models": models} if form == "models" else {"slices": sliced(family, [(0, 2), (2, 3)])}
    )
    merged = merge({**content, "modules": {"default": module}})
    assert not unequal(merged, of_family(family))


def test_modules_of_two_stacks(tmp_path: Path, merge: Merge) -> None:
    folder = save_family(tmp_path / "t5", "t5")
    content = recipe(folder, models=MODELS)
    models = content.pop("models")
    modules = {
        "encoder": {"models": models},
        "decoder": {"slices": sliced(folder, [(0, 1), (1, 2)])},
        "shared": {"models": models},
    }
    merged = merge({**content, "modules": modules})
    assert not unequal(merged, merge(recipe(folder, models=MODELS), output="plain"))


# mergekit's other commands and functions


def run(command: Any, *arguments: object) -> None:
    LoaderCache.loaders.clear()
    result = CliRunner().invoke(command, [str(each) for each in arguments])
    if result.exit_code:
        raise AssertionError(result.output) from result.exception


def test_mergekit_multi_feeds_one_stage_into_the_next(
    family: Path, tmp_path: Path, merge: Merge
) -> None:
    first = recipe(family, models={"math": MODELS["math"]})
    second = recipe(family, "dppa_ties", models={"law": MODELS["law"]})
    parameters = {"weight": 0.7, "density": 0.15}

    def with_stage(path: str) -> dict[str, Any]:
        stage = {"model": path, "parameters": parameters}
        return {**second, "models": [stage, *second["models"]]}

    path = tmp_path / "stages.yml"
    path.write_text(yaml.safe_dump_all([{**first, "name": "stage"}, with_stage("stage")]))
    run(mergekit_multi, path, "--out-path", tmp_path / "multi", "-I", tmp_path / "between")

    merge(first, output="first")
    wanted = merge(with_stage(str(tmp_path / "first")), output="second")
    assert not unequal(tensors_of(tmp_path / "between" / "stage"), tensors_of(tmp_path / "first"))
    assert not unequal(tensors_of(tmp_path / "multi"), wanted)
    models = [tensors_of(each) for each in (family / "base", tmp_path / "first", family / "law")]
    assert not unequal(wanted, expected(models, [parameters, MODELS["law"]], "dppa_ties"))


def raw_recipe(folder: Path, suffix: str, method: str = "dppa", **changes: Any) -> dict[str, Any]:
    """A recipe of mergekit-pytorch, over files instead of folders."""
    file = f"model.{suffix}" if suffix == "safetensors" else "pytorch_model.bin"
    content: dict[str, Any] = recipe(folder, method, MODELS, **changes)
    content["base_model"] += f"/{file}"
    for model in content["models"]:
        model["model"] += f"/{file}"
    return content


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("method", METHODS)
def test_mergekit_pytorch_equals_mergekit_yaml(
    method: str, suffix: str, family: Path, tmp_path: Path, merge: Merge
) -> None:
    folder = family if suffix == "safetensors" else pickled(family, tmp_path / "pickled", 1)
    path = write_recipe(tmp_path / "raw.yml", raw_recipe(folder, suffix, method))
    run(mergekit_pytorch, path, tmp_path / "raw")
    merged = tensors_of(tmp_path / "raw")
    if method == "dare_dpa":
        # The random choice is keyed on the model's name, which is another here: a file's.
        wanted = merge(recipe(folder, method, MODELS))
        dense = [n for n in wanted if "_proj" not in n]
        assert set(merged) == set(wanted)
        assert not unequal({n: merged[n] for n in dense}, {n: wanted[n] for n in dense})
    else:
        assert not unequal(merged, merge(recipe(folder, method, MODELS)))


def test_mergekit_pytorch_with_filters_and_dtypes(bfloat16: Path, tmp_path: Path) -> None:
    setting = FORMS["filters"](0.1, 0.3, 0.2)
    changes = {"dtype": "float32", "out_dtype": "bfloat16"}
    content = raw_recipe(bfloat16, "safetensors", **changes)
    content["models"][0]["parameters"] = {"weight": 0.6, "density": setting}
    run(mergekit_pytorch, write_recipe(tmp_path / "raw.yml", content), tmp_path / "raw")
    given = [{"weight": 0.6, "density": by_name(setting)}, MODELS["law"]]
    dtypes = {"dtype": torch.float32, "out_dtype": torch.bfloat16}
    wanted = expected(base_and_tuned(bfloat16), given, **dtypes)
    assert not unequal(tensors_of(tmp_path / "raw"), wanted)


def test_mergekit_pytorch_casts_its_sum_once(bfloat16: Path, tmp_path: Path) -> None:
    content = raw_recipe(bfloat16, "safetensors", out_dtype="float32")
    run(mergekit_pytorch, write_recipe(tmp_path / "raw.yml", content), tmp_path / "raw")
    wanted = of_family(bfloat16, dtype=torch.float32)
    assert not unequal(tensors_of(tmp_path / "raw"), wanted)


def test_mergekit_pytorch_of_what_all_models_have(family: Path, tmp_path: Path) -> None:
    missing = "model.layers.1.mlp.up_proj.weight"

    def drop(model: str, tensors: Tensors) -> Tensors:
        return {n: t for n, t in tensors.items() if model != "law" or n != missing}

    folder = converted(family, tmp_path / "dropped", drop)
    path = write_recipe(tmp_path / "raw.yml", raw_recipe(folder, "safetensors"))
    run(mergekit_pytorch, path, tmp_path / "raw", "--tensor-intersection")
    models = [
        {n: t for n, t in tensors.items() if n != missing} for tensors in base_and_tuned(folder)
    ]
    assert not unequal(tensors_of(tmp_path / "raw"), expected(models, [*MODELS.values()]))


def in_memory(models: Mapping[str, Parameters]) -> dict[str, dict[str, Any]]:
    """Recipe parameters as the in-memory functions take them: name -> model -> value."""
    names = {name for values in models.values() for name in values}
    defaults = {"density": 0.2}
    return {
        name: {model: values.get(name, defaults.get(name, 1.0)) for model, values in models.items()}
        for name in names
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merge_state_dicts_equals_mergekit_yaml(
    dtype: str, method: str, family: Path, bfloat16: Path, merge: Merge
) -> None:
    folder = family if dtype == "float32" else bfloat16
    parameters = in_memory(MODELS)
    if method in ("dp", "owl"):
        parameters = {name: parameters[name] for name in ("weight", "density")}
    models = {str(folder / name): tensors_of(folder / name) for name in ("base", *MODELS)}
    by_path = {
        name: {str(folder / model): value for model, value in values.items()}
        for name, values in parameters.items()
    }
    merged = merge_state_dicts(models, method, parameters=by_path, base=str(folder / "base"))
    assert not unequal(merged, merge(recipe(folder, method, MODELS)))


@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [(torch.bfloat16, None), (torch.bfloat16, torch.float32), (None, torch.bfloat16)],
)
def test_merge_state_dicts_with_dtypes(
    dtype: torch.dtype | None, out_dtype: torch.dtype | None, family: Path
) -> None:
    models = dict(zip(("base", *MODELS), base_and_tuned(family), strict=True))
    merged = merge_state_dicts(
        models,
        "dppa",
        parameters=in_memory(MODELS),
        base="base",
        dtype=dtype,
        out_dtype=out_dtype,
    )
    # The sum is cast once, from float32 to out_dtype.
    models_as_merged = [
        {n: t.to(dtype or t.dtype).float() for n, t in tensors.items()}
        for tensors in models.values()
    ]
    wanted = expected(models_as_merged, [*MODELS.values()], out_dtype=out_dtype or dtype)
    assert not unequal(merged, wanted)


def test_merge_state_dicts_of_modules(family: Path) -> None:
    models = {
        name: transformers.LlamaForCausalLM.from_pretrained(family / name)
        for name in ("base", *MODELS)
    }
    merged = merge_state_dicts(models, "dppa", parameters=in_memory(MODELS), base="base")
    wanted = dict(of_family(family))
    wanted["lm_head.weight"] = wanted["model.embed_tokens.weight"]
    assert not unequal(merged, wanted)
    assert not any(tensor.requires_grad for tensor in merged.values())


def test_merge_state_dicts_with_a_density_for_each_tensor(family: Path) -> None:
    setting = FORMS["filters"](0.1, 0.3, 0.2)
    models = dict(zip(("base", *MODELS), base_and_tuned(family), strict=True))
    densities = PerGroupValues([resolve(setting, name) for name in models["base"]])
    merged = merge_state_dicts(
        models, "dppa", parameters={"weight": 0.5, "density": densities}, base="base"
    )
    given = [{"weight": 0.5, "density": by_name(setting)}] * 2
    assert not unequal(merged, expected(list(models.values()), given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [None, "model.layers.0.mlp.up_proj.weight"])
def test_merge_tensors_keeps_the_plain_density(name: str | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn((60, 50), generator=generator).to(dtype)
    tuned = base + (0.05 * torch.randn(base.shape, generator=generator)).to(dtype)
    parameters = {"weight": 1.0, "density": 0.25, "amplify_90": 2.0, "amplify_70": 0.5}
    merged = merge_tensors([base, tuned], "dppa", parameters=parameters, base_index=0, name=name)
    delta = oracle.difference(base.float().numpy(), tuned.float().numpy())
    kept = oracle.sparsify(delta, {90: 300, 80: 600, 70: 750}, {90: 2.0, 70: 0.5})
    wanted = torch.from_numpy(base.float().numpy() + kept).to(dtype)
    assert not unequal({"merged": merged}, {"merged": wanted})


def test_merge_tensors_leaves_dense_tensors_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    base, tuned = torch.randn((2, 60, 50), generator=generator)
    name = "model.layers.0.mlp.gate.weight"
    parameters = {"weight": 0.5, "density": 0.1, "amplify_dense": 3.0}
    merged = merge_tensors([base, tuned], "dppa", parameters=parameters, base_index=0, name=name)
    assert torch.equal(merged, base + (tuned - base) * 3.0 * 0.5)


# Options of the command


@pytest.mark.parametrize(
    "options",
    [
        ("--async-write",),
        ("--async-write", "--write-threads", "2", "--out-shard-size", "20K"),
        ("--clone-tensors",),
        ("--out-shard-size", "20K"),
        ("--quiet",),
        ("--low-cpu-memory", "--read-to-gpu"),
    ],
    ids=" ".join,
)
def test_options_that_change_no_value(
    options: tuple[str, ...], family: Path, tmp_path: Path, merge: Merge
) -> None:
    merged = merge(recipe(family, models=MODELS), *options)
    assert not unequal(merged, of_family(family))
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert (len(shards) > 3) == ("--out-shard-size" in options)
    loaded, info = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not info["missing_keys"]
    state = {n: t for n, t in loaded.state_dict().items() if n in merged}
    assert not unequal(state, merged)


def test_pickled_output(family: Path, tmp_path: Path, merge: Merge) -> None:
    merge(recipe(family, models=MODELS), "--no-safe-serialization")
    merged = torch.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True)
    assert not unequal(merged, of_family(family))


# Reproducibility


@pytest.fixture(scope="session")
def wide_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Linears that are large enough to be shared out among threads."""
    return save_family(
        tmp_path_factory.mktemp("wide"),
        dtype=torch.bfloat16,
        hidden_size=256,
        intermediate_size=1040,
        num_hidden_layers=2,
    )


@pytest.mark.parametrize("method", METHODS)
def test_threads_and_repetition_change_no_byte(
    method: str, wide_family: Path, tmp_path: Path, merge: Merge
) -> None:
    content = recipe(wide_family, method, MODELS)
    found = []
    for output, threads in (("one", 1), ("again", 1), ("two", 2)):
        torch.set_num_threads(threads)
        merge(content, output=output)
        found.append((tmp_path / output / "model.safetensors").read_bytes())
    assert found[0] == found[1]
    assert found[1] == found[2]


@pytest.mark.parametrize("method", METHODS)
def test_order_of_models_moves_no_choice(method: str, family: Path, merge: Merge) -> None:
    models = {"math": {**MODELS["math"], "weight": 1.0}, "law": {**MODELS["law"], "weight": 0.0}}
    backwards = dict(reversed(models.items()))
    forth = merge(recipe(family, method, models), output="forth")
    assert not unequal(merge(recipe(family, method, backwards), output="back"), forth)


def test_seed_decides_the_random_partitions(family: Path, merge: Merge) -> None:
    def merged(seed: int, output: str) -> Tensors:
        return merge(recipe(family, "dare_dpa", MODELS, parameters={"seed": seed}), output=output)

    assert unequal(merged(0, "zero"), merged(1, "one"))
    assert not unequal(merged(1, "again"), merged(1, "more"))


def test_a_model_is_tuned_in_every_linear_by_these_builders() -> None:
    """What the tests above rest on: no delta is zero throughout, and some elements are."""
    base = new_model("llama", 0)
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    for name, parameter in fine_tune(base, 1).named_parameters():
        moved = np.count_nonzero((parameter.detach() - before[name]).numpy())
        assert 0 < moved < parameter.numel()
