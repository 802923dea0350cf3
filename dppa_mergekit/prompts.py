"""Prompts without answers, from a file of the user's: a line each, or JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

from dppa_mergekit.errors import DppaError


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line, or of a .jsonl file, under `prompt`; none is blank.

    Raises:
        DppaError: It cannot be read, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DppaError(f"{path} cannot be read: {error}.") from error
    prompts = lines
    if path.suffix == ".jsonl":
        prompts = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                prompt = json.loads(line)["prompt"]
            except (ValueError, KeyError, TypeError):
                prompt = None
            if not isinstance(prompt, str):
                raise DppaError(f'{path}: line {number} is not {{"prompt": "..."}}.')
            prompts.append(prompt)
    found = [prompt for prompt in prompts if prompt.strip()]
    if not found:
        raise DppaError(f"{path} holds no prompts.")
    return found
