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

## Interference

| merge      | pruned by | shared, % | opposite, % | angle | cross-talk |
| ---------- | --------- | --------: | ----------: | ----: | ---------: |
| math + law | unpruned  |  99 ± 0.0 |    47 ± 0.0 |    60 |       0.85 |
| math + law | 80 %      |  21 ± 0.0 |    44 ± 0.0 |       |            |

## Table 6: merges of math + law

| merge                      | pruned by | weights by        | math |  law |       mean | seconds |
| -------------------------- | --------- | ----------------- | ---: | ---: | ---------: | ------: |
| base                       |           |                   |    1 |    0 |  0.5 ± 0.1 |         |
| task arithmetic            |           | search            |   50 |   60 | 55.0 ± 1.0 |     100 |
| DARE                       | 80 %      | search            |   50 |   64 | 57.0 ± 1.0 |     100 |
| DPPA                       | 80 %      | AdaMerging, block |   70 |   80 | 75.0 ± 1.0 |     100 |
| DPPA, by inputs            | 80 %      | as it starts      |   80 |   81 | 80.5 ± 1.0 |       0 |
| DPPA, by inputs            | 80 %      | search            |   90 |   90 | 90.0 ± 1.0 |     100 |
| DPPA, by inputs, data-free | 80 %      | as it starts      |   88 |   88 | 88.0 ± 1.0 |       0 |

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


def test_a_merge_is_compared_with_the_best_searched_sum(found: quotes.Quotes) -> None:
    (merge,) = rule.list_merges(found, "tiny")
    assert merge == rule.Merge(
        "tiny", ("math", "law"), 0.85, 60, 21, 44, pytest.approx(0.022), 57, 80.5
    )
    assert merge.lead == 23.5


def test_the_table_is_that_of_the_results() -> None:
    assert (rule.HERE / "tables" / "rule.md").read_text() == rule.tabulate_results()


def test_a_figure_has_all_settings(found: quotes.Quotes, tmp_path: Path) -> None:
    prunings, merges = rule.list_prunings(found, "tiny"), rule.list_merges(found, "tiny")
    rule.draw(prunings, merges, tmp_path / "rule.png")
    assert (tmp_path / "rule.png").stat().st_size > 10_000
