"""Files of prompts, by their suffixes."""

from pathlib import Path

import pytest

from dppa_mergekit.errors import DppaError
from dppa_mergekit.prompts import Prompt, read_prompts


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("math.jsonl", Prompt("2 + 2", " 4")),
        ("math.JSONL", Prompt("2 + 2", " 4")),
        ("math.txt", Prompt('{"prompt": "2 + 2", "completion": " 4"}')),
        ("math.prompts", Prompt('{"prompt": "2 + 2", "completion": " 4"}')),
    ],
)
def test_the_suffix_tells_how_a_line_is_read(name: str, found: Prompt, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text('{"prompt": "2 + 2", "completion": " 4"}\n\n', encoding="utf-8")
    assert read_prompts(path) == [found]


@pytest.mark.parametrize("name", ["math.json", "math.JSON"])
def test_a_json_file_is_neither(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text('[\n  {"prompt": "2 + 2"}\n]\n', encoding="utf-8")
    with pytest.raises(DppaError) as refused:
        read_prompts(path)
    assert refused.value.message == (
        f"{path} is a JSON file; allowed are .jsonl, with an object a line, and .txt, with a "
        f"prompt a line."
    )
