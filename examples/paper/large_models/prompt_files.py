"""The prompts of the domains of a pool, each in a file named after the domain's model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_prompts(folder: Path, prompts: Mapping[str, Sequence[str]]) -> None:
    """Write prompts as JSON lines.

    Args:
        folder: The folder of the files.
        prompts: Model -> its prompts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for model, texts in prompts.items():
        lines = [json.dumps({"prompt": text}) for text in texts]
        path = folder / f"{model.rpartition('/')[2]}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
