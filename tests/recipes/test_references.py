"""References to models: read as mergekit reads them, and one identity for all spellings."""

from pathlib import Path

import pytest
from mergekit.common import ModelReference

from dppa_mergekit.errors import RecipeError
from dppa_mergekit.recipes.references import Place, Reference, identity, named, spell


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


@pytest.mark.parametrize(
    "value",
    [
        "math",
        "me/model@main",
        "me/model@main+me/lora@v2",
        "math+law",
        {"model": {"path": "./a+b@c"}},
        {"model": {"path": "me/model", "revision": "v1"}, "lora": {"path": "law"}},
        {"model": "me/model@v1", "lora": "law"},
    ],
)
def test_references_are_read_as_mergekit_reads_them(value: object) -> None:
    theirs, ours = ModelReference.model_validate(value), Reference.parse(value)
    assert (ours.model.path, ours.model.revision) == (theirs.model.path, theirs.model.revision)
    assert str(ours) == str(theirs) == spell(value)
    lora = None if theirs.lora is None else (theirs.lora.path, theirs.lora.revision)
    assert lora == (None if ours.lora is None else (ours.lora.path, ours.lora.revision))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("a+b@c", "takes what follows a + for a LoRA; a path with a + must be written as {model:"),
        ("me/a+b+c", "a path with a + must be written as {model: {path: me/a+b+c}}."),
        ("me/a@b@c", "and reads no two; a path with an @ must be written as {model: {path: me/a@"),
        ("math@1", "and so reads math; a folder has none, and a path with an @ must be written"),
        ("nothing@2/x", "and so reads nothing; a folder has none"),
        ({"path": "math"}, "is no reference to a model; allowed is a path, a name on the Hub, or"),
        ({"model": {"folder": "math"}}, "which has no path; allowed are path and revision."),
    ],
)
def test_references_that_mean_something_else(value: object, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "nothing@2/x").mkdir(parents=True)
    with pytest.raises(RecipeError) as raised:
        Reference.parse(value)
    assert sentence in str(raised.value)


def test_a_spelling_of_a_folder_leads_back_to_it() -> None:
    assert named(spell({"model": {"path": "a+b@c"}})).model == Place("a+b@c")
    assert named("me/model@v1+law").lora == Place("law")
