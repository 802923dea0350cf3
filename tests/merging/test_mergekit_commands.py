"""mergekit's other commands, and the options of mergekit-yaml."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from checkpoints import recipe, tensors_of, unequal, write_recipe
from click.testing import CliRunner
from commands import Merge
from mergekit.io.tasks import LoaderCache
from mergekit.scripts.merge_raw_pytorch import SimpleLoaderCache
from mergekit.scripts.merge_raw_pytorch import main as mergekit_pytorch
from mergekit.scripts.multimerge import main as mergekit_multi
from oracle_merges import (
    METHODS,
    MODELS,
    Tensors,
    base_and_tuned,
    converted,
    expected,
    of_family,
    pickled,
)
from settings import FORMS, by_name


@pytest.fixture(autouse=True)
def _fresh_raw_loaders() -> Iterator[None]:
    yield
    SimpleLoaderCache().loaders.clear()


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
