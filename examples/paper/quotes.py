"""The prose of RESULTS.md, in which every share and gap is quoted from a table.

    python examples/paper/quotes.py

In:  the Markdown files in `tables/`, and `RESULTS.md.jinja`, which names the cells that it quotes.
Out: RESULTS.md.

A cell is named by its table (`file: heading`), the first cells of its row, joined by `, `, and its
column. What is quoted is always of the tables as they are: after a new measurement, the numbers in
the prose are the new ones, and the words around them have to be read again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import TypeAlias

from jinja2 import Environment, StrictUndefined

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE / "RESULTS.md.jinja"
RESULTS = HERE / "RESULTS.md"

WIDTH = 120
"""Characters of a line of prose."""

NUMBER = r"-?\d+(?:\.\d+)?"
CELL = re.compile(rf"({NUMBER})(?: ± ({NUMBER}))?(?: \(({NUMBER})\))?")


@dataclass(frozen=True)
class Cell:
    """A number of a table.

    Attributes:
        value: The number or, of several seeds or models, their mean.
        spread: Its standard error, or the deviation over seeds; 0 if the table has none.
        paper: The paper's own number in brackets; None if there is none.
    """

    value: float
    spread: float = 0.0
    paper: float | None = None

    def __str__(self) -> str:
        return str(floor(self.value + 0.5))

    @property
    def exactly(self) -> str:
        """The number with one decimal."""
        return f"{self.value:.1f}"

    @property
    def with_spread(self) -> str:
        """The number and its spread, as the table has them."""
        return f"{self.value:.1f} ± {self.spread:.1f}"

    def __sub__(self, other: Cell) -> Cell:
        """Return the gap to another cell; the two count as independent."""
        return Cell(self.value - other.value, (self.spread**2 + other.spread**2) ** 0.5)


@dataclass(frozen=True)
class Table:
    """A Markdown table: the heads of its columns, and the texts of its rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


Tables: TypeAlias = Mapping[str, Table]
"""`file: heading` -> the table below that heading."""


def read_tables(folder: Path) -> Tables:
    """Return all tables of the Markdown files in a folder; a heading has at most one."""
    tables: dict[str, Table] = {}
    for path in sorted(folder.glob("*.md")):
        heading, lines = "", []
        for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
            if line.startswith("|"):
                lines.append([cell.strip() for cell in line.strip().strip("|").split("|")])
                continue
            if lines:
                tables[f"{path.stem}: {heading}"] = Table(lines[0], lines[2:])
                lines = []
            if line.startswith("#"):
                heading = line.lstrip("#").strip()
    return tables


@dataclass(frozen=True)
class Quotes:
    """What a template can call to quote cells."""

    tables: Tables

    def cell(self, table: str, row: str, column: str) -> Cell:
        """Return a cell.

        Raises:
            LookupError: There is no such table, row, column or number, or several such rows.
        """
        found = self._find(table)
        if column not in found.head:
            raise LookupError(f"{table} has no column {column!r}, but {', '.join(found.head)}.")
        texts = [cells[found.head.index(column)] for cells in found.rows if _is_named(cells, row)]
        if len(texts) != 1:
            raise LookupError(f"{table} has {len(texts)} rows {row!r}, not one.")
        return _parse(texts[0], f"{table}, {row}, {column}")

    def cells(self, table: str, rows: Iterable[str], columns: Sequence[str]) -> list[Cell]:
        """Return the cells of some rows and columns, row by row."""
        return [self.cell(table, row, column) for row in rows for column in columns]

    def column(self, table: str, column: str) -> list[Cell]:
        """Return all numbers of a column."""
        found = self._find(table)
        texts = [cells[found.head.index(column)] for cells in found.rows]
        return [_parse(text, f"{table}, {column}") for text in texts if text]

    def _find(self, table: str) -> Table:
        if table not in self.tables:
            raise LookupError(f"There is no table {table!r}.")
        return self.tables[table]


def enumerate_cells(cells: Sequence[Cell]) -> str:
    """Return numbers as words do: `74, 0 and 10`."""
    texts = [str(cell) for cell in cells]
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))


def span(cells: Sequence[Cell]) -> str:
    """Return the least and the largest number: `52 to 70`."""
    least, largest = (str(Cell(pick(cell.value for cell in cells))) for pick in (min, max))
    return least if least == largest else f"{least} to {largest}"


def average(cells: Sequence[Cell]) -> Cell:
    """Return the mean of numbers, without a spread."""
    return Cell(mean(cell.value for cell in cells))


def render(template: str, tables: Tables) -> str:
    """Return a template with its quotes filled in.

    Raises:
        LookupError: It quotes what is in no table.
    """
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"each": enumerate_cells, "span": span, "average": average}
    quotes = Quotes(tables)
    named = {"cell": quotes.cell, "cells": quotes.cells, "column": quotes.column}
    return "".join(map(_fill, _split(environment.from_string(template).render(named))))


def _split(text: str) -> Iterator[str]:
    """Yield pieces of a Markdown text: a line that is to stay as it is, or an item or paragraph."""
    piece, in_code = "", False
    for line in text.splitlines(keepends=True):
        begins_item = line.startswith("- ")
        kept = in_code or line.startswith(("|", "#", "!", "```")) or not line.strip()
        if piece and (kept or begins_item):
            yield piece
            piece = ""
        if kept:
            yield line
            in_code ^= line.startswith("```")
        else:
            piece += line
    if piece:
        yield piece


def _fill(piece: str) -> str:
    """Break the lines of an item or paragraph anew, since quotes have another length."""
    if not piece.strip() or piece.startswith(("|", "#", "!", "```")) or "\n" not in piece[:-1]:
        return piece
    indent = "  " if piece.startswith("- ") else ""
    filled = fill(
        " ".join(piece.split()),
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{filled}\n"


def _is_named(cells: Sequence[str], row: str) -> bool:
    """Return whether the first cells of a row, joined, are a text."""
    return any(", ".join(cells[:number]) == row for number in range(1, len(cells)))


def _parse(text: str, name: str) -> Cell:
    found = CELL.fullmatch(text.removesuffix(" %"))
    if found is None:
        raise LookupError(f"{name} is {text!r}, not a number.")
    value, spread, paper = found.groups()
    return Cell(float(value), float(spread or 0), None if paper is None else float(paper))


if __name__ == "__main__":
    text = render(TEMPLATE.read_text(encoding="utf-8"), read_tables(HERE / "tables"))
    RESULTS.write_text(text, encoding="utf-8")
