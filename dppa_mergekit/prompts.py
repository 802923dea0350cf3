"""Prompts, with or without completions, from a file of the user's: a line each, or JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dppa_mergekit.errors import DppaError


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        text: Its text; not blank.
        completion: What is to follow; None where that is not known.
    """

    text: str
    completion: str | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a text file, one a line, or of a .jsonl file, with `prompt`, `completion`.

    Raises:
        DppaError: It cannot be read, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise DppaError(f"{path} cannot be read: {error}.") from error
    prompts = [
        _parsed(line, f"{path}: line {number}") if path.suffix == ".jsonl" else Prompt(line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    found = [prompt for prompt in prompts if prompt.text.strip()]
    if not found:
        raise DppaError(f"{path} holds no prompts.")
    return found


def _parsed(line: str, where: str) -> Prompt:
    try:
        content = json.loads(line)
        prompt, completion = content["prompt"], content.get("completion")
    except (ValueError, KeyError, TypeError, AttributeError):
        prompt, completion = None, None
    if not isinstance(prompt, str) or not isinstance(completion, str | None):
        raise DppaError(f'{where} is not {{"prompt": "..."}}, with or without "completion".')
    return Prompt(prompt, completion)
