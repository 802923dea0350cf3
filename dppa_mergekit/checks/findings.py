"""Findings: the results of checks, one sentence each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
"""After an error, a merge fails or is not what was meant; after a warning, it may not be; a note
helps to plan."""


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        severity: How bad it is.
        subject: What the sentence is about: a part of the recipe, a model, a file.
        sentence: What is wrong with it, and what is allowed.
    """

    severity: Severity
    subject: str
    sentence: str

    def __str__(self) -> str:
        """Return the finding as the terminal shows it."""
        return f"{self.severity}: {self.subject}: {self.sentence}"


def error(subject: str, sentence: str) -> Finding:
    """Report that a merge would fail, or not be what was meant."""
    return Finding("error", subject, sentence)


def warning(subject: str, sentence: str) -> Finding:
    """Report that a merge may not be what was meant."""
    return Finding("warning", subject, sentence)


def note(subject: str, sentence: str) -> Finding:
    """Report what helps to plan a merge."""
    return Finding("note", subject, sentence)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the nearest known one, or all of them."""
    names = list(known)
    near = find_nearest(name, names)
    return f"did you mean {near}?" if near else f"known are {', '.join(names)}."


def find_nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like another; None where none is alike."""
    near = difflib.get_close_matches(name, list(known), 1)
    return near[0] if near else None
