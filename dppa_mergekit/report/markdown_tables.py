"""Tables in Markdown that are aligned, for those who read them on a screen."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """A table; its text ends with a line break.

    Args:
        head: Of its columns.
        rows: Of as many cells.
        names: So many columns, from the first, are aligned to the left; the others are numbers.
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
