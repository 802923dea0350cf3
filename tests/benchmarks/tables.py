"""Tables in markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, columns aligned for those who read it as text."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    ruler = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in (head, ruler, *rows)
    )


def number(value: float | None, digits: int = 2) -> str:
    """With so many digits behind the point; `-` for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def gigabytes(value: float | None) -> str:
    """Bytes in units of 10**9, with three digits that count."""
    return "-" if value is None else f"{value / 1e9:.3g}"
