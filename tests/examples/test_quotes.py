"""The prose of the results quotes the tables as they are."""

import re
from pathlib import Path

import pytest
import quotes

TABLES = """\
# Some

## Pruned

| domain | rate | DARE               | DPPA       |
| ------ | ---- | -----------------: | ---------: |
| math   | 80 % | 99.5 ± 2.0 (73.44) | 98         |
| math   | 90 % | 0.4 ± 0.2          | 97.5 ± 1.5 |
| law    | 90 % | 10.0 ± 1.0         | none       |
"""


@pytest.fixture
def tables(tmp_path: Path) -> quotes.Tables:
    (tmp_path / "some.md").write_text(TABLES)
    return quotes.read_tables(tmp_path)


def test_cells_are_found_by_the_beginning_of_their_row(tables: quotes.Tables) -> None:
    found = quotes.Quotes(tables)
    assert found.cell("some: Pruned", "math, 80 %", "DARE") == quotes.Cell(99.5, 2.0, 73.44)
    assert found.cell("some: Pruned", "law", "DARE") == quotes.Cell(10.0, 1.0)
    gap = found.cell("some: Pruned", "math, 90 %", "DPPA") - quotes.Cell(90.5, 2.0)
    assert (str(gap), gap.with_spread) == ("7", "7.0 ± 2.5")
    with pytest.raises(LookupError, match=r"has 2 rows 'math', not one\."):
        found.cell("some: Pruned", "math", "DARE")
    with pytest.raises(LookupError, match=r"has 0 rows 'finance', not one\."):
        found.cell("some: Pruned", "finance", "DARE")
    with pytest.raises(LookupError, match="has no column 'OWL', but domain, rate, DARE, DPPA"):
        found.cell("some: Pruned", "law", "OWL")
    with pytest.raises(LookupError, match="There is no table 'some: Merged'"):
        found.cell("some: Merged", "law", "DARE")
    with pytest.raises(LookupError, match="law, DPPA is 'none', not a number"):
        found.cell("some: Pruned", "law", "DPPA")


def test_a_template_is_filled_and_its_lines_are_broken_anew(tables: quotes.Tables) -> None:
    template = """\
# Title

- Kept: {{ cells("some: Pruned", ["math, 80 %", "math, 90 %", "law"], ["DARE"]) | each }} %, so
  {{ cells("some: Pruned", ["math, 90 %", "law"], ["DARE"]) | span }} %
  at the higher rate.

```sh
run this

and that
```
"""
    assert (
        quotes.render(template, tables)
        == """\
# Title

- Kept: 100, 0 and 10 %, so 0 to 10 % at the higher rate.

```sh
run this

and that
```
"""
    )
    with pytest.raises(LookupError):
        quotes.render('{{ cell("some: Pruned", "law", "OWL") }}', tables)


def test_the_results_are_filled_in_from_the_tables() -> None:
    template = quotes.TEMPLATE.read_text(encoding="utf-8")
    filled = quotes.render(template, quotes.read_tables(quotes.HERE / "tables"))
    assert quotes.RESULTS.read_text(encoding="utf-8") == filled
    assert filled.count("\n") <= 400


def test_no_share_is_typed_into_the_results() -> None:
    """A share, a gap or a spread that no table has would not change when the tables do."""
    template = quotes.TEMPLATE.read_text(encoding="utf-8")
    typed = re.sub(r"\{[{%].*?[%}]\}", "", template, flags=re.DOTALL)
    # What the paper says is no measurement of ours, and figures have the paper's rates.
    typed = re.sub(
        r"the paper[^.;]*?by [^.;]*points|DPPA is [^.;]*points|linear at 80 %", "", typed
    )
    assert re.findall(r"[\d.]+(?: and [\d.]+| to [\d.]+)? (?:%|points)|±", typed) == []
