"""`mergekit-dppa analyze`, against NumPy and against the merges that mergekit writes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path

import numpy
import pytest
import torch
from checkpoints import recipe, save_family, tensors_of, write_recipe
from click.testing import CliRunner, Result
from pydantic import TypeAdapter

from dppa_mergekit.analysis import analyze as analysis
from dppa_mergekit.analysis.results import Analysis, measure_structure
from dppa_mergekit.cli.main import main
from dppa_mergekit.errors import DppaError
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.tensor_names import linears_in

Merge = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return save_family(tmp_path)


def analyze(tmp_path: Path, content: Mapping[str, object], *options: str) -> Result:
    path = write_recipe(tmp_path / "recipe.yml", content)
    return CliRunner().invoke(main, ["analyze", str(path), *options])


def read(tmp_path: Path, content: Mapping[str, object], *options: str) -> Analysis:
    done = analyze(tmp_path, content, f"--output={tmp_path / 'analysis'}", *options)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "analysis" / "analysis.json").read_bytes()
    return TypeAdapter(Analysis).validate_json(text)


def plain(family: Path, density: float, method: str = "dp") -> dict:
    content = recipe(family)
    for model in content["models"]:
        model["parameters"] = {"weight": 1.0, "density": density}
    return {**content, "merge_method": method}


def alone(content: dict, number: int, density: float) -> dict:
    model = {**content["models"][number], "parameters": {"weight": 1.0, "density": density}}
    return {**content, "models": [model]}


def test_offsets_are_numpys(family: Path, tmp_path: Path) -> None:
    content = plain(family, 0.2)
    found = read(tmp_path, content)
    base = tensors_of(Path(content["base_model"]))
    for analyzed, model in zip(found.models, content["models"], strict=True):
        fine_tuned = tensors_of(Path(model["model"]))
        names = [name for name, tensor in base.items() if linears_in(name, tensor.shape)]
        deltas = [
            (fine_tuned[name].float() - base[name].float()).flatten().numpy() for name in names
        ]
        delta = numpy.concatenate(deltas)
        offsets = analyzed.offsets
        assert (offsets.minimum, offsets.maximum) == (delta.min(), delta.max())
        assert offsets.zeros == pytest.approx((delta == 0).mean(), abs=1e-12)
        exact = numpy.quantile(delta, numpy.arange(1, 10) / 10, method="inverted_cdf")
        numpy.testing.assert_allclose(offsets.deciles, exact, rtol=2**-8, atol=1e-30)
        assert offsets.deviation == pytest.approx(numpy.sqrt((delta**2).mean()), rel=1e-5)
        weights = numpy.concatenate([base[name].float().flatten().numpy() for name in names])
        relative = delta.std() / numpy.sqrt((weights**2).mean())
        assert offsets.relative == pytest.approx(relative, rel=1e-2)
        assert 0.99 < sum(offsets.histogram) <= 1 + 1e-12


def test_kept_elements_are_those_that_mergekit_writes(
    family: Path, tmp_path: Path, merge: Merge
) -> None:
    content = plain(family, 0.3)
    found = read(tmp_path, content)
    base = tensors_of(Path(content["base_model"]))

    def moved(number: int, density: float) -> dict[str, numpy.ndarray]:
        merged = merge(alone(content, number, density), output=f"out_{number}_{density}")
        return {
            name: numpy.sign((merged[name].double() - base[name].double()).numpy()) for name in base
        }

    signs = {
        (number, density): moved(number, density)
        for number in range(len(found.models))
        for density in (0.1, 0.2, 0.3, 1.0)
    }
    for number, model in enumerate(found.models):
        assert model.linears
        for linear in model.linears:
            at = {density: signs[number, density][linear.tensor] for density in (0.1, 0.2, 0.3)}
            assert linear.kept == numpy.count_nonzero(at[0.3])
            for rate, density in ((90, 0.1), (80, 0.2)):
                rows = numpy.count_nonzero(at[density], axis=1)
                columns = numpy.count_nonzero(at[density], axis=0)
                assert linear.structure[rate] == measure_structure(rows, columns)
                assert linear.structure[rate].rows[0] == rows.max() / len(columns)
        assert model.kept == sum(linear.kept for linear in model.linears)
        assert {block.number for block in model.blocks} == {0, 1, 2}
        for block in model.blocks:
            members = [linear for linear in model.linears if f".{block.number}." in linear.tensor]
            assert block.kept == sum(member.kept for member in members)
    names = [linear.tensor for linear in found.models[0].linears]
    pairs = list(combinations(range(len(found.models)), 2))
    assert len(found.pairs) == len(pairs) > 0
    for pair, (one, other) in zip(found.pairs, pairs, strict=True):
        assert pair.models == (found.models[one].model, found.models[other].model)
        for key, density in (("unpruned", 1.0), ("90", 0.1), ("80", 0.2)):
            first, second = (
                numpy.concatenate([signs[number, density][name].ravel() for name in names])
                for number in (one, other)
            )
            overlap = pair.overlaps[key]
            assert overlap.either == ((first != 0) | (second != 0)).mean()
            assert overlap.both == ((first != 0) & (second != 0)).mean()
            assert overlap.opposite == (first * second < 0).mean()


def test_shares_of_rows_and_columns_with_half_of_the_kept_elements() -> None:
    even = measure_structure(numpy.full(8, 3), numpy.full(6, 4))
    assert (even.rows_with_half, even.columns_with_half) == (0.5, 0.5)
    skewed = measure_structure(numpy.array([6, 0, 0, 0]), numpy.ones(6, numpy.int64))
    assert skewed.rows_with_half == 0.25
    assert skewed.kept == 0.25
    none = measure_structure(numpy.zeros(3, numpy.int64), numpy.zeros(2, numpy.int64))
    assert none.rows_with_half == 0


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gpt2", "t5"])
def test_architectures(tmp_path: Path, architecture: str) -> None:
    family = save_family(tmp_path, architecture)
    found = read(tmp_path, plain(family, 0.2))
    for model in found.models:
        assert model.kept == pytest.approx(0.2 * model.numel, abs=len(model.linears))
    linears = sum(tensor.linears for tensor in found.tensors)
    assert linears == len(found.models[0].linears)
    for tensor in found.tensors:
        assert (tensor.linears == 0) == (tensor.dense_because is not None)
    norms = [tensor for tensor in found.tensors if "norm" in tensor.name or ".ln_" in tensor.name]
    assert norms
    assert all(tensor.dense_because for tensor in norms)


def test_a_second_run_reads_no_weights(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPPA_MERGEKIT_CACHE", str(tmp_path / "cache"))
    first = read(tmp_path, plain(family, 0.2))

    def fail(*_: object) -> None:
        raise AssertionError("the weights were read again")

    monkeypatch.setattr(analysis, "inspect_deltas", fail)
    assert read(tmp_path, plain(family, 0.2)) == first
    done = analyze(tmp_path, plain(family, 0.3))
    assert "read again" in str(done.exception)


def test_another_process_finds_the_cached_analysis(family: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yml", plain(family, 0.2))
    cache = tmp_path / "cache"
    program = "from dppa_mergekit.cli.main import main; main()"
    environment = {**os.environ, "DPPA_MERGEKIT_CACHE": str(cache)}
    kept = []
    for _ in range(3):
        command = [sys.executable, "-c", program, "analyze", str(path)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        kept.append(sorted(path.name for path in cache.iterdir()))
    assert len(kept[0]) == 3
    assert kept[1] == kept[2] == kept[0]


def test_verdict_by_prompts(family: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "any.txt"
    prompts.write_text("w1 w2 w3\nw4 w5 w6 w7\n", encoding="utf-8")
    done = analyze(tmp_path, plain(family, 0.1), f"--prompts={prompts}")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("in nats per token on 2 prompts, by ") == 2
    assert "The merge: Combine by " in done.stdout
    close = read(tmp_path, plain(family, 0.95), f"--prompts={prompts}")
    far = read(tmp_path, plain(family, 0.05), f"--prompts={prompts}")
    for near, distant in zip(close.models, far.models, strict=True):
        assert near.divergences is not None
        assert distant.divergences is not None
        assert near.divergences.prompts == 2
        assert abs(near.divergences.dp) < distant.divergences.dp
        assert near.divergences.dare < distant.divergences.dare
        assert near.divergences.dare_linear is not None
        assert distant.divergences.dare_linear is not None
        assert near.divergences.dare_linear < distant.divergences.dare_linear
    assert [merge.method for merge in close.merges] == [
        *("dare_dpa", "dp", "dppa_ties", "dppa_regmean", "dare_regmean")
    ]
    for near, distant in zip(close.merges, far.merges, strict=True):
        assert list(near.of_models) == [model.model for model in close.models]
        assert (near.weight is None) == ("regmean" in near.method)
        assert near.mean < distant.mean


def test_prompts_without_a_density(family: Path, tmp_path: Path) -> None:
    """The package's own default holds for every method, mergekit's too."""
    content = plain(family, 0.2)
    silent = json.loads(json.dumps(content))
    for model in silent["models"]:
        del model["parameters"]["density"]
    given = {model["model"]: [Prompt("w1 w2 w3")] for model in content["models"]}
    with_density, without = (analysis.analyze(Recipe(one), given) for one in (content, silent))
    for one, other in zip(with_density.models, without.models, strict=True):
        assert one.divergences == other.divergences
    assert with_density.merges == without.merges


def test_the_function_gives_what_the_command_writes(family: Path, tmp_path: Path) -> None:
    content = plain(family, 0.1)
    prompts = tmp_path / "any.txt"
    prompts.write_text("w1 w2 w3\n", encoding="utf-8")
    models = [model["model"] for model in content["models"]]
    given = {model: [Prompt("w1 w2 w3")] for model in models}
    found = analysis.analyze(Recipe(content), given)
    assert found == read(tmp_path, content, f"--prompts={prompts}")
    without = analysis.analyze(Recipe(content))
    assert [model.divergences for model in without.models] == [None, None]
    only_first = analysis.analyze(Recipe(content), {models[0]: given[models[0]]})
    assert only_first.models == (found.models[0], without.models[1])
    assert len(found.merges) == 5
    assert without.merges == only_first.merges == ()


def test_mergekits_own_methods_show_what_dppa_would_keep(family: Path, tmp_path: Path) -> None:
    of_ties = read(tmp_path, plain(family, 0.2, "ties"))
    assert of_ties.method == "dppa"
    assert of_ties.models == read(tmp_path, plain(family, 0.2, "dppa")).models


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content: content.update(merge_method="linear", base_model=None), "no base_model"),
        (lambda content: content["models"][0].update(model="./nowhere"), "./nowhere"),
        (lambda content: content.update(merge_method="dpaa"), "did you mean"),
    ],
)
def test_mistakes(
    family: Path, tmp_path: Path, change: Callable[[dict], None], sentence: str
) -> None:
    content = plain(family, 0.2)
    change(content)
    if content["base_model"] is None:
        del content["base_model"]
        for model in content["models"]:
            del model["parameters"]["density"]
    done = analyze(tmp_path, content)
    assert done.exit_code == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.output


def test_an_output_below_a_file(family: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = analyze(tmp_path, plain(family, 0.2), f"--output={tmp_path / 'file' / 'x'}")
    assert done.exit_code == 1
    assert f"cannot be written: there is no folder {tmp_path / 'file'}" in done.stderr


def test_prompts_of_an_unknown_model_are_refused_before_weights_are_read(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(analysis, "inspect_deltas", fail)
    with pytest.raises(DppaError, match=r"has no fine-tuned model \./mth; it has .*math"):
        analysis.analyze(Recipe(plain(family, 0.2)), {"./mth": [Prompt("w1")]})


def test_prompts_of_no_model(family: Path, tmp_path: Path) -> None:
    content = plain(family, 0.2)
    own = tmp_path / f"{Path(content['models'][0]['model']).name}.txt"
    own.write_text("w1 w2\n", encoding="utf-8")
    done = analyze(tmp_path, content, f"--prompts={own}")
    assert done.exit_code == 1
    assert "has no prompts" in done.stderr


def test_pictures_and_record(family: Path, tmp_path: Path) -> None:
    read(tmp_path, plain(family, 0.2))
    folder = tmp_path / "analysis"
    names = {path.name for path in folder.iterdir()}
    pictures = {"density.png", "offsets.png", "structure.png", "overlap.png"}
    kept = {".dppa_run.json.lock", "dppa_run.json"}
    assert names == {"analysis.json", "analysis.md", *kept, *pictures}
    record = json.loads((folder / "dppa_run.json").read_text(encoding="utf-8"))["analysis.json"]
    assert record["command"] == "analyze"
    assert [Path(result["model"]).name for result in record["results"]] == [
        "math",
        "law",
        "The merge",
    ]


def test_it_works_where_autoload_is_switched_off(family: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yml", recipe(family))
    script = "from dppa_mergekit.cli.main import main; main()"
    command = [sys.executable, "-c", script, "analyze", str(path)]
    environment = {**os.environ, "DPPA_MERGEKIT_AUTOLOAD": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"{family}/math" in done.stdout
