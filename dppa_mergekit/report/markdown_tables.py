"""Markdown tables whose columns align, so that the source is readable too."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Return a table as text that ends with a line break.

    Args:
        head: The header of each column.
        rows: Cells, as many in each row as there are columns.
        names: The first so many columns hold names and are left-aligned; the others hold numbers.
    """
    widths = [max(len(line[column]) for line in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < names else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |\n"

    ruler = [
        "-" * width if column < names else "-" * max(1, width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "".join([line(head), "| " + " | ".join(ruler) + " |\n", *map(line, rows)])


def with_error(value: float, error: float | None, digits: int) -> str:
    """Return a number with its standard error if that is known: 93.1 ± 1.2."""
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
