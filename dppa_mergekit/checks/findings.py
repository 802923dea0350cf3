"""Findings: what a check has to say, one sentence each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
"""An error is a merge that fails or is not what was meant; a note is for planning."""


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        severity: How bad it is.
        subject: What it is about: a place in the recipe, a model, a file.
        sentence: What is wrong with it, and what is allowed.
    """

    severity: Severity
    subject: str
    sentence: str

    def __str__(self) -> str:
        """For people."""
        return f"{self.severity}: {self.subject}: {self.sentence}"


def error(subject: str, sentence: str) -> Finding:
    """A merge would fail, or not be what was meant."""
    return Finding("error", subject, sentence)


def warning(subject: str, sentence: str) -> Finding:
    """A merge may not be what was meant."""
    return Finding("warning", subject, sentence)


def note(subject: str, sentence: str) -> Finding:
    """Good to know."""
    return Finding("note", subject, sentence)


def nearest(name: str, known: Iterable[str]) -> str:
    """A question that ends a sentence: what was meant; or what there is."""
    every = list(known)
    near = difflib.get_close_matches(name, every, 1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(every)}."
