"""Prompts, with or without completions, read from a user's file: one a line, or JSON lines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dppa_mergekit.errors import DppaError


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        text: The text of the prompt; not blank.
        completion: The text that should follow it; None where that is not known.

    Example:
        >>> from dppa_mergekit import Prompt
        >>> Prompt("What is 7 times 8?", completion=" 56").completion
        ' 56'
    """

    text: str
    completion: str | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts from a text file, one a line, or from a .jsonl file.

    Args:
        path: The file. A line of a .jsonl file is {"prompt": "...", "completion": "..."}; the
            completion may be left out.

    Raises:
        DppaError: The file is a .json file, cannot be read, holds no prompts, or has a line that is
            no prompt.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        raise DppaError(
            f"{path} is a JSON file; allowed are .jsonl, with an object a line, and .txt, with a "
            f"prompt a line."
        )
    try:
        # Not splitlines: JSON may contain other line separators.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DppaError(f"{path} cannot be read: {error}.") from error
    prompts = [
        _parse(line, f"{path}: line {number}") if suffix == ".jsonl" else Prompt(line)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    found = [prompt for prompt in prompts if prompt.text.strip()]
    if not found:
        raise DppaError(f"{path} holds no prompts.")
    return found


def _parse(line: str, where: str) -> Prompt:
    try:
        content = json.loads(line)
        prompt, completion = content["prompt"], content.get("completion")
    except (ValueError, KeyError, TypeError, AttributeError):
        prompt, completion = None, None
    if not isinstance(prompt, str) or not isinstance(completion, str | None):
        raise DppaError(f'{where} is not {{"prompt": "..."}}, with or without "completion".')
    return Prompt(prompt, completion)
