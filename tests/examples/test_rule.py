"""The rule's figure and table: read from the tables of results, by handmade ones."""

from pathlib import Path

import pytest
import quotes
import rule

TABLES = """\
# A setting

## Where methods cross

| domain | pruned by | noise |   Magnitude |         DP | DARE, linears alone |       DARE |
| ------ | --------- | ----: | ----------: | ---------: | ------------------: | ---------: |
| math   | 80 %      |  0.04 |  99.5 ± 2.2 | 98.8 ± 2.2 |          99.7 ± 2.2 | 99.2 ± 2.2 |
| law    | 98 %      |  0.15 |   4.6 ± 1.2 |  7.0 ± 1.4 |          93.3 ± 2.4 |  3.0 ± 0.9 |

## Tables 4 and 8: the deltas

| model | min | max | relative |
| ----- | --: | --: | -------: |
| math  |  -1 |   1 |    0.020 |
| law   |  -1 |   1 |    0.024 |
"""


@pytest.fixture
def found(tmp_path: Path) -> quotes.Quotes:
    (tmp_path / "tiny.md").write_text(TABLES)
    return quotes.Quotes(quotes.read_tables(tmp_path))


def test_a_pruning_is_a_row(found: quotes.Quotes) -> None:
    one, other = rule.list_prunings(found, "tiny")
    assert one == rule.Pruning("tiny", 0.04, 0.02, pytest.approx(0.2), 99.2, 99.7, 98.8)
    assert other == rule.Pruning("tiny", 0.15, 0.024, pytest.approx(0.02), 3, 93.3, 7)
    assert other.lead == pytest.approx(86.3)


def test_the_table_is_that_of_the_results() -> None:
    written = (rule.HERE / "tables" / "rule.md").read_text()
    assert written == rule.format_table(rule.read_results())


def test_a_figure_is_drawn(found: quotes.Quotes, tmp_path: Path) -> None:
    rule.draw(rule.list_prunings(found, "tiny"), tmp_path / "rule.png")
    assert (tmp_path / "rule.png").read_bytes().startswith(b"\x89PNG")
