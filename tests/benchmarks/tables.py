"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    ruler = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in (head, ruler, *rows)
    )


def format_number(value: float | None, digits: int = 2) -> str:
    """Return a number with so many digits after the point; `-` for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def format_gigabytes(value: float | None) -> str:
    """Return bytes in units of 10**9 with three significant digits; `-` for None."""
    return "-" if value is None else f"{value / 1e9:.3g}"
