"""No byte of a merge moves: the hashes of tests/support/golden_merges.py, as they were.

`golden_merges.json` is what that script printed before the package was rearranged. A change that
means to move bytes writes it anew, and says why.
"""

import json
from pathlib import Path

import pytest
from golden_merges import ARCHITECTURES, DTYPES, METHODS, merge_hash, save_models

from dppa_mergekit.deltas.kernel import library

GOLDEN = json.loads(Path(__file__).with_name("golden_merges.json").read_text(encoding="utf-8"))

KINDS = [f"{architecture} {dtype}" for architecture in ARCHITECTURES for dtype in DTYPES]
WITHOUT_LIBRARY = ["llama bfloat16", "gpt2 float32", "mixtral_stacked float16"]


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of one architecture and dtype."""
    folder = tmp_path_factory.mktemp("models")
    save_models(folder, *request.param.split())
    return folder


def hashes(kind: str, models: Path, tmp_path: Path) -> dict[str, str]:
    return {f"{kind} {method}": merge_hash(models, method, tmp_path / method) for method in METHODS}


def golden(kind: str) -> dict[str, str]:
    return {f"{kind} {method}": GOLDEN[f"{kind} {method}"] for method in METHODS}


def test_there_is_a_hash_for_every_merge() -> None:
    assert set(GOLDEN) == {f"{kind} {method}" for kind in KINDS for method in METHODS}
    # Only how a checkpoint of Mixtral stores its experts makes no difference.
    separate = {key: value for key, value in GOLDEN.items() if not key.startswith("mixtral_")}
    assert len(set(separate.values())) == len(separate)
    for key in GOLDEN.keys() - separate.keys():
        assert GOLDEN[key] == GOLDEN[key.replace("mixtral_stacked", "mixtral")]


def of_kinds(kinds: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("kind", "models"), [(kind, kind) for kind in kinds], indirect=["models"], ids=kinds
    )


@of_kinds(KINDS)
def test_merges_are_as_they_were(kind: str, models: Path, tmp_path: Path) -> None:
    assert hashes(kind, models, tmp_path) == golden(kind)


@of_kinds(WITHOUT_LIBRARY)
def test_merges_without_the_library_are_as_they_were(
    kind: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "load", lambda: None)
    assert hashes(kind, models, tmp_path) == golden(kind)
