"""The identity of a model: one for all its spellings."""

from pathlib import Path

import pytest
from mergekit.common import ModelReference

from dppa_mergekit.recipes import identity


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("math", "law", "a+b@c"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("math")


@pytest.mark.parametrize("spelling", ["math", "./math/", "law/../math", "link", "{}/math"])
@pytest.mark.parametrize("rest", ["", "@v1", "+law", "@v1+me/lora"])
def test_spellings_of_one_model(spelling: str, rest: str, tmp_path: Path) -> None:
    spelled = spelling.format(tmp_path) + rest
    assert identity(spelled) == identity(f"math{rest}")
    assert identity(ModelReference.parse(spelled)) == identity(spelled)


def test_models_that_are_not_one() -> None:
    spellings = [
        "math",
        "math@v1",
        "math@v2",
        "math+law",
        "math+me/lora",
        "law",
        "me/math",
        "a+b@c",
    ]
    assert len({identity(spelling) for spelling in spellings}) == len(spellings)


def test_adapters_are_resolved() -> None:
    assert identity("math+./law") == identity("link+law")


def test_a_name_on_the_hub_is_itself() -> None:
    assert identity("me/model@main") == "me/model@main"
    assert identity(None) == "None"


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    assert identity("./a+b@c") == str(tmp_path.resolve() / "a+b@c")
