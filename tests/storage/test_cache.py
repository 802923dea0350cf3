"""Statistics are cached for later merges of the same files, and for no others."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import recipe, save_family, tensors_of, unequal, write_recipe
from click.testing import Result
from commands import RunYaml
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from dppa_mergekit.allocation.measurement import delta_statistics
from dppa_mergekit.allocation.statistics import Multiples
from dppa_mergekit.deltas.delta import CHUNK, Delta
from dppa_mergekit.merging import model_allocation
from dppa_mergekit.sparsification import pruning
from dppa_mergekit.sparsification.amplification import PartitionAmplification
from dppa_mergekit.storage import cache


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, turned on."""
    folder = tmp_path / "kept"
    monkeypatch.setenv("DPPA_MERGEKIT_CACHE", str(folder))
    return folder


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The models of each measurement."""
    calls: list[list[str]] = []
    measure = model_allocation.measure

    def counting(sources, models, *rest):
        calls.append([Path(str(model)).name for model in models])
        return measure(sources, models, *rest)

    monkeypatch.setattr(model_allocation, "measure", counting)
    return calls


def test_a_second_merge_measures_nothing_and_writes_the_same(
    tmp_path: Path, run_yaml: Callable[..., Result], kept: Path, measured: list[list[str]]
) -> None:
    content = recipe(save_family(tmp_path / "family"))
    assert run_yaml(content, output="first").exit_code == 0
    assert run_yaml(content, output="second").exit_code == 0
    assert measured == [["math", "law"]]
    assert len(list(kept.iterdir())) == 4  # statistics, and kept sets
    first, second = (tensors_of(tmp_path / name) for name in ("first", "second"))
    assert unequal(first, second) == []


def test_only_what_changed_is_measured_again(
    tmp_path: Path, run_yaml: Callable[..., Result], kept: Path, measured: list[list[str]]
) -> None:
    family = save_family(tmp_path / "family")
    assert run_yaml(recipe(family)).exit_code == 0
    # Other weights in a file of the same name, size, header and modification time.
    file = family / "law" / "model.safetensors"
    before = file.stat()
    tensors = {name: tensor * 1.5 for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    assert run_yaml(recipe(family), output="second").exit_code == 0
    assert measured == [["math", "law"], ["law"]]


@pytest.mark.parametrize(
    "changes",
    [{"dtype": "bfloat16"}, {"parameters": {"significance_multiple": 3}}],
)
def test_options_that_change_statistics_have_entries_of_their_own(
    changes: dict[str, object],
    tmp_path: Path,
    run_yaml: Callable[..., Result],
    kept: Path,
    measured: list[list[str]],
) -> None:
    family = save_family(tmp_path / "family")
    assert run_yaml(recipe(family)).exit_code == 0
    assert run_yaml(recipe(family, **changes), output="second").exit_code == 0
    assert measured == [["math", "law"], ["math", "law"]]


def test_entries_of_another_format_are_ignored(
    tmp_path: Path,
    run_yaml: Callable[..., Result],
    kept: Path,
    measured: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = recipe(save_family(tmp_path / "family"))
    monkeypatch.setattr(cache, "FORMAT", cache.FORMAT - 1)
    assert run_yaml(content).exit_code == 0
    before = {path: path.read_bytes() for path in kept.iterdir()}
    monkeypatch.undo()
    monkeypatch.setenv("DPPA_MERGEKIT_CACHE", str(kept))
    assert run_yaml(content, output="second").exit_code == 0
    assert len(list(kept.iterdir())) == 2 * len(before) == 8
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("damage", ["", "{", "0\n[]", "\x00\xff"])
def test_a_damaged_file_is_a_warning(
    damage: str,
    tmp_path: Path,
    run_yaml: Callable[..., Result],
    kept: Path,
    measured: list[list[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    content = recipe(save_family(tmp_path / "family"))
    assert run_yaml(content).exit_code == 0
    for file in kept.iterdir():
        file.write_bytes(damage.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        assert run_yaml(content, output="second").exit_code == 0
    assert caplog.text.count("are damaged or cannot be read") == 4
    assert run_yaml(content, output="third").exit_code == 0
    assert measured == [["math", "law"], ["math", "law"]]
    assert unequal(tensors_of(tmp_path / "out"), tensors_of(tmp_path / "third")) == []


def test_an_error_without_a_message_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = cache.cache_entry(tmp_path, "math", "numbers", TypeAdapter(list[int]), [])
    entry.write([1])

    def fail(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr(cache, "_checksum", fail)
    assert entry.read() is None
    assert "cannot be read (ValueError)" in caplog.text


def test_a_folder_that_cannot_be_made_is_a_warning(
    tmp_path: Path,
    run_yaml: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPPA_MERGEKIT_CACHE", str(tmp_path / "file" / "folder"))
    with caplog.at_level(logging.WARNING):
        assert run_yaml(recipe(save_family(tmp_path / "family"))).exit_code == 0
    assert caplog.text.count("cannot be") == 8


@pytest.fixture
def selected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of linears whose thresholds were computed, merge by merge; tests append a 0."""
    numbers: list[int] = []
    select = pruning.select

    def counting(requests):
        numbers[-1] += len(requests)
        return select(requests)

    monkeypatch.setattr(pruning, "select", counting)
    return numbers


def test_kept_sets_are_found_once(
    tmp_path: Path,
    run_yaml: Callable[..., Result],
    kept: Path,
    selected: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = save_family(tmp_path / "family")
    others = {
        "math": {"weight": 0.7, "density": 0.2, "amplify_90": 3.0, "amplify_dense": 0.5},
        "law": {"weight": -0.2, "density": 0.25, "amplify_90": 3.0},
    }
    contents = [
        recipe(family, models=models, merge_method=method)
        for method in ("dppa", "dppa_ties")
        for models in (
            others,
            # Of what the first had in two partitions, less is asked.
            {**others, "math": {"weight": 0.5, "density": 0.2, "amplify_90": 1.0}},
            # And here more: another density, and one that prunes nothing.
            {"math": {"weight": 0.7, "density": 0.3}, "law": {"weight": 0.3, "density": 1.0}},
            others,
        )
    ]
    for number, content in enumerate(contents):
        selected.append(0)
        assert run_yaml(content, output=f"cached_{number}").exit_code == 0
    linears = selected[0] // 2
    assert linears > 0
    # What is kept is what the last merge used; one whose model prunes nothing uses none.
    assert selected == [2 * linears, 0, linears, linears, 0, 0, linears, linears]
    monkeypatch.setenv("DPPA_MERGEKIT_CACHE", "off")
    for number, content in enumerate(contents):
        selected.append(0)
        assert run_yaml(content, output=f"found_{number}").exit_code == 0
        assert selected[-1] > 0
        cached, found = (tensors_of(tmp_path / f"{name}_{number}") for name in ("cached", "found"))
        assert unequal(cached, found) == []


def test_kept_sets_of_float64_are_others(
    tmp_path: Path, run_yaml: Callable[..., Result], kept: Path, selected: list[int]
) -> None:
    family = save_family(tmp_path / "family")
    file = family / "law" / "model.safetensors"
    both = recipe(family)
    alone = {**both, "models": both["models"][:1]}
    save_file(
        {name: tensor.double() for name, tensor in load_file(file).items()},
        file,
        metadata={"format": "pt"},
    )
    for number, content in enumerate((alone, alone, both, both)):
        selected.append(0)
        assert run_yaml(content, output=str(number)).exit_code == 0
    linears = selected[0]
    # Beside a model of float64, the deltas of the other are float64 too.
    assert selected == [linears, 0, 2 * linears, 0]
    assert unequal(tensors_of(tmp_path / "2"), tensors_of(tmp_path / "3")) == []


def test_statistics_beside_float64_are_others(
    tmp_path: Path, run_yaml: Callable[..., Result], kept: Path, measured: list[list[str]]
) -> None:
    family = save_family(tmp_path / "family")
    both = recipe(family)
    assert run_yaml({**both, "models": both["models"][:1]}).exit_code == 0
    file = family / "law" / "model.safetensors"
    save_file({name: tensor.double() for name, tensor in load_file(file).items()}, file)
    assert run_yaml(both).exit_code == 0
    assert measured == [["math"], ["math", "law"]]


def test_a_slice_with_a_base_of_its_own(
    tmp_path: Path,
    merge: Callable[..., dict[str, torch.Tensor]],
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = save_family(tmp_path / "family", tuned=("math", "second"), num_hidden_layers=4)

    def sliced(until: int) -> dict[str, object]:
        def of_base(base: str, *layers: int) -> dict[str, object]:
            sources = [
                {"model": str(family / name), "layer_range": layers, "parameters": parameters}
                for name, parameters in ((base, {}), ("math", {"weight": 0.6, "density": 0.2}))
            ]
            return {"base_model": str(family / base), "sources": sources}

        return {
            "merge_method": "dppa",
            "base_model": str(family / "base"),
            "slices": [of_base("base", 0, until), of_base("second", until, 4)],
        }

    merge(sliced(1), output="other")
    after_other = merge(sliced(3), output="after")
    monkeypatch.setenv("DPPA_MERGEKIT_CACHE", "off")
    assert unequal(merge(sliced(3)), after_other) == []


def test_the_order_of_mergekit_pytorch_is_none(tmp_path: Path) -> None:
    family = save_family(tmp_path / "family")
    content = recipe(family)
    content["base_model"] += "/model.safetensors"
    for model in content["models"]:
        model["model"] += "/model.safetensors"
    write_recipe(tmp_path / "recipe.yml", content)
    numbers = []
    for seed in ("1", "2"):
        environment = {
            **os.environ,
            "DPPA_MERGEKIT_CACHE": str(tmp_path / "kept"),
            "PYTHONHASHSEED": seed,
        }
        command = [Path(sys.executable).with_name("mergekit-pytorch"), "recipe.yml", f"out_{seed}"]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        numbers.append(len(list((tmp_path / "kept").iterdir())))
    assert numbers == [4, 4]


@pytest.mark.parametrize("multiple", [0.3, 2.0, 5.0])
def test_threads_change_nothing(multiple: float) -> None:
    generator = torch.Generator().manual_seed(3)
    shape = (3, CHUNK // 2 + 77)
    names = [f"model.layers.{i}.mlp.{kind}.weight" for i in range(2) for kind in ("up", "down")]
    base = {name: (torch.randn(shape, generator=generator) * 0.02).bfloat16() for name in names}
    tuned = {
        name: (tensor.float() + torch.randn(shape, generator=generator) * 3e-4 * (1 + i)).bfloat16()
        for i, (name, tensor) in enumerate(base.items())
    }
    delta = (tuned[names[0]].float() - base[names[0]].float()).flatten()
    count = delta.numel() // 5
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        statistics = delta_statistics(base, tuned, Multiples(multiple, multiple * 1.3))
        sparse = PartitionAmplification({90: 1.5}).sparsify(delta, {90: count // 2, 80: count})
        results.append((statistics, sparse))
    for statistics, sparse in results[1:]:
        assert statistics == results[0][0]
        assert torch.equal(sparse, results[0][1])
    # Against plain float64 sums.
    first = next(found for found in results[0][0].linears if found.linear.tensor == names[0])
    magnitudes = Delta(delta).sample(1).abs().double()
    mean = float(magnitudes.mean())
    tail = magnitudes[magnitudes > multiple * mean]
    assert first.magnitude == pytest.approx(float(magnitudes.sum()), rel=1e-12)
    assert first.count == len(tail)
    assert first.mass == pytest.approx(float(tail.sum()), rel=1e-12)
    assert first.nonzero == int((magnitudes > 0).sum())


def test_switched_off_it_fingerprints_nothing(
    tmp_path: Path, run_yaml: RunYaml, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fingerprint reads a page of every tensor, which costs time on a network disk."""

    def refuse(self: object) -> None:
        raise AssertionError("fingerprinted")

    monkeypatch.setattr("dppa_mergekit.checkpoints.headers.Checkpoint.fingerprint", refuse)
    content = recipe(save_family(tmp_path / "family"))
    monkeypatch.setenv("DPPA_MERGEKIT_CACHE", "off")
    assert run_yaml(content).exit_code == 0
    monkeypatch.setenv("DPPA_MERGEKIT_CACHE", str(tmp_path / "cache"))
    assert run_yaml(content, output="again").exit_code
