"""Small changes to the files of a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from checkpoints import tensors_of

Change = Callable[[dict], object]


def edit(path: Path, change: Change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def rename(folder: Path, change: Callable[[str], str]) -> None:
    """Store the tensors of a checkpoint of one file under other names."""
    changed = {change(name): each for name, each in tensors_of(folder).items()}
    (weights,) = folder.glob("*.safetensors")
    safetensors.torch.save_file(changed, weights, {"format": "pt"})


def without_prefix(name: str) -> str:
    return name.removeprefix("transformer.")
