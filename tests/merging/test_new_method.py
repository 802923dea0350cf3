"""A new allocation is one object and one row, and merges by mergekit's own command."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from checkpoints import recipe, save_family, tensors_of
from commands import Merge, RunYaml
from mergekit.merge_methods import registry

from dppa_mergekit import methods
from dppa_mergekit.allocation.statistics import ModelStatistics
from dppa_mergekit.combination.combinations import WEIGHTED_SUM
from dppa_mergekit.errors import ParameterError
from dppa_mergekit.merging.method import Method
from dppa_mergekit.parameters import Number, Parameter
from dppa_mergekit.sparsification.selections import MAGNITUDE
from dppa_mergekit.tensor_names import Linear

SLOPE = Number("slope", False, "How much denser the last block is than the first.", 0.0, -1, 1)


@dataclass(frozen=True)
class ByDepth:
    """Densities that rise from the first block to the last; needs no tails."""

    slope: float
    multiples: None = None

    def allocate(self, statistics: ModelStatistics, density: float) -> dict[Linear, int]:
        numbers = [record.block.number for record in statistics.linears if record.block]
        middle = max(numbers) / 2
        return {
            record.linear: round(record.numel * (density + self.slope * (number - middle)))
            for record, number in zip(statistics.linears, numbers, strict=True)
        }


class ByDepthRule:
    parameters: tuple[Parameter, ...] = (SLOPE,)

    def resolve(self, shared: Mapping[str, object]) -> ByDepth:
        return ByDepth(SLOPE.of(shared))


ROW = Method("by_depth", "By depth", ByDepthRule(), MAGNITUDE, WEIGHTED_SUM)
MODELS = {"math": {"weight": 1.0, "density": 0.3}}


@pytest.fixture
def _in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has the row, for one test."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(methods, "METHODS", (*methods.METHODS, ROW))
    methods.register_methods()


@pytest.mark.usefixtures("_in_the_table")
def test_a_new_allocation_merges_by_mergekit_yaml(tmp_path: Path, merge: Merge) -> None:
    family = save_family(tmp_path / "family")
    merged = merge(recipe(family, "by_depth", MODELS, parameters={"slope": 0.1}))
    base, fine_tuned = tensors_of(family / "base"), tensors_of(family / "math")
    for block, density in enumerate((0.2, 0.3, 0.4)):
        name = f"model.layers.{block}.mlp.up_proj.weight"
        delta = fine_tuned[name] - base[name]
        kept = round(density * delta.numel())
        smallest = delta.abs().flatten().sort(descending=True).values[kept - 1]
        wanted = torch.where(delta.abs() >= smallest, delta, torch.zeros_like(delta))
        assert torch.equal(merged[name], base[name] + wanted)
    assert torch.equal(merged["model.norm.weight"], fine_tuned["model.norm.weight"])


@pytest.mark.usefixtures("_in_the_table")
def test_its_parameter_is_checked_as_the_others_are(tmp_path: Path, run_yaml: RunYaml) -> None:
    family = save_family(tmp_path / "family")
    ended = run_yaml(recipe(family, "by_depth", MODELS, parameters={"slope": 2}))
    assert isinstance(ended.exception, (ParameterError, SystemExit))
    assert "slope is 2; allowed is a number from -1 to 1." in ended.output


def test_without_its_row_nobody_knows_it(tmp_path: Path, run_yaml: RunYaml) -> None:
    ended = run_yaml(recipe(save_family(tmp_path / "family"), "by_depth", MODELS))
    assert ended.exit_code
