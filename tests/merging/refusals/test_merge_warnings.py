"""Odd input that is merged with a warning."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import recipe, save_family, tensors_of, write_recipe
from commands import RunYaml
from refused_merges import Q, edit


def test_a_delta_of_zero_warns(
    family: Path, tmp_path: Path, run_yaml: RunYaml, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(family / "base" / "model.safetensors", family / "math" / "model.safetensors")
    result = run_yaml(recipe(family, models={"math": {"weight": 1.0}}))
    assert result.exit_code == 0
    assert f"{family}/math: its delta is zero everywhere" in caplog.text
    base, merged = tensors_of(family / "base"), tensors_of(tmp_path / "out")
    assert all(torch.equal(merged[name], tensor) for name, tensor in base.items())


def test_fewer_non_zero_deltas_than_the_density_warns(
    family: Path, run_yaml: RunYaml, caplog: pytest.LogCaptureFixture
) -> None:
    base = tensors_of(family / "base")

    def keep_a_tenth(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            unmoved = torch.arange(tensor.numel()).view_as(tensor) % 10 != 0
            tensor[unmoved] = base[name][unmoved]

    edit(family / "math", keep_a_tenth)
    assert run_yaml(recipe(family)).exit_code == 0
    (warning,) = [record for record in caplog.records if "non-zero" in record.getMessage()]
    assert f"{family}/math: only 9.0 % of its linears' deltas" in warning.getMessage()


@pytest.mark.parametrize("dtypes", [{}, {"dtype": "float16", "out_dtype": "float32"}])
def test_an_overflow_of_the_sum_warns(
    dtypes: dict[str, str], tmp_path: Path, run_yaml: RunYaml, caplog: pytest.LogCaptureFixture
) -> None:
    family = save_family(tmp_path / "halves", dtype=torch.float16)

    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q].view(-1)[3] = 60000.0

    edit(family / "math", enlarge)
    result = run_yaml(recipe(family, models={"math": {"weight": 1.5}}, **dtypes))
    assert result.exit_code == 0
    warnings = [record.getMessage() for record in caplog.records if "too large" in record.message]
    assert warnings == [
        f"Tensor {Q}: the sum is too large for float16; what does not fit becomes infinity or NaN."
    ]


def test_an_overflow_of_out_dtype_warns(
    family: Path, run_yaml: RunYaml, caplog: pytest.LogCaptureFixture
) -> None:
    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q].view(-1)[3] = 1e6

    edit(family / "math", enlarge)
    assert run_yaml(recipe(family, out_dtype="float16")).exit_code == 0
    assert f"Tensor {Q}: the sum is too large for float16" in caplog.text


def test_a_warning_stands_on_a_line_of_its_own_beside_mergekits_bar(tmp_path: Path) -> None:
    family = save_family(tmp_path / "halves", dtype=torch.float16)

    def enlarge(tensors: dict[str, torch.Tensor]) -> None:
        tensors[Q].view(-1)[3] = 60000.0

    edit(family / "math", enlarge)
    path = write_recipe(tmp_path / "recipe.yml", recipe(family, models={"math": {"weight": 1.5}}))
    command = [sys.executable, "-m", "mergekit.scripts.run_yaml", str(path), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = re.split(r"[\r\n]", ended.stderr)
    (warning,) = [line for line in lines if "the sum is too large for float16" in line]
    assert warning.startswith("WARNING:dppa_mergekit")
    assert [line for line in lines if line.startswith("Executing graph")]
