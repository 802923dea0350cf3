"""Merges that end in one sentence before anything is written."""

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from checkpoints import tensors_of
from click.testing import Result

Q = "model.layers.1.self_attn.q_proj.weight"


def refused(result: Result, tmp_path: Path) -> str:
    """The one sentence of a run that ended before anything was written."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert written == []
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    return lines[0].removeprefix("Error: ")


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = tensors_of(folder)
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
