"""What is read ahead, against the bytes of the files."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from checkpoints import recipe, save_family
from click.testing import Result
from safetensors import safe_open

from dppa_mergekit.allocation.measurement import TensorSource, measure
from dppa_mergekit.allocation.statistics import Multiples
from dppa_mergekit.checkpoints.headers import Checkpoint
from dppa_mergekit.tensor_names import linears_in


class Index:
    def __init__(self, file: Path) -> None:
        self.base_path = str(file.parent)
        with safe_open(file, "pt") as opened:
            self.tensor_paths = dict.fromkeys(opened.keys(), file.name)


def test_spans_are_where_the_bytes_lie(tmp_path: Path) -> None:
    (file,) = (save_family(tmp_path / "family") / "base").glob("*.safetensors")
    checkpoint = Checkpoint("base", Index(file))
    content = file.read_bytes()
    with safe_open(file, "pt") as opened:
        assert set(checkpoint.stored()) == set(opened.keys())
        for name in checkpoint.stored():
            span = checkpoint.header(name).span
            assert span is not None
            held = opened.get_tensor(name).contiguous().view(-1).view(torch.uint8).numpy()
            assert content[span[0] : sum(span)] == held.tobytes()
            checkpoint.read_ahead(name)


def test_each_tensor_is_announced_just_before_the_one_before_it_is_measured() -> None:
    names = [f"model.layers.{i}.mlp.{part}.weight" for i in range(3) for part in ("a", "b")]
    names.append("model.norm.weight")
    events: list[str] = []

    def source(name: str, place: int) -> TensorSource:
        def load() -> Mapping[str, torch.Tensor]:
            events.append(f"read {name}")
            generator = torch.Generator().manual_seed(place)
            base = torch.randn(8, 8, generator=generator)
            # Linears of very different deltas: some are visited twice.
            tuned = base + torch.randn(8, 8, generator=generator) * 4.0 ** (place % 2)
            return {"base": base, "tuned": tuned}

        return TensorSource(
            name, "base", load, lambda shape: linears_in(name, shape),
            read_ahead=lambda: events.append(f"ahead {name}"),
        )  # fmt: skip

    measure([source(name, i) for i, name in enumerate(names)], ["tuned"], [Multiples(0.5, 0.5)])
    first_reads = list(dict.fromkeys(event for event in events if event.startswith("read")))
    assert first_reads == [f"read {name}" for name in names]
    assert [event for event in events if event.startswith("ahead")] == [
        f"ahead {name}" for name in names[1:]
    ]
    for before, name in itertools.pairwise(names):
        assert events.index(f"ahead {name}") == events.index(f"read {before}") - 1


def test_a_merge_reads_ahead(
    run_yaml: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[str] = []
    monkeypatch.setattr(Checkpoint, "read_ahead", lambda self, name: announced.append(name))
    family = save_family(tmp_path / "family")
    assert run_yaml(recipe(family)).exit_code == 0
    with safe_open(next((family / "base").glob("*.safetensors")), "pt") as opened:
        stored = set(opened.keys())
    # All but the first, once for each model.
    models = len(announced) // (len(stored) - 1)
    assert models > 1
    assert len(announced) == models * (len(stored) - 1)
    assert set(announced) < stored
