"""Markdown tables and numbers with their errors."""

import pytest

from dppa_mergekit.report.markdown_tables import table, with_error


def test_columns_align() -> None:
    assert table(["model", "score"], [["math", "0.5"], ["a longer name", "12.25"]]) == (
        "| model         | score |\n"
        "| ------------- | ----: |\n"
        "| math          |   0.5 |\n"
        "| a longer name | 12.25 |\n"
    )


@pytest.mark.parametrize(
    ("error", "digits", "text"),
    [(None, 1, "93.1"), (1.25, 1, "93.1 ± 1.2"), (0.5, 3, "93.125 ± 0.500")],
)
def test_numbers_with_errors(error: float | None, digits: int, text: str) -> None:
    assert with_error(93.125, error, digits) == text
