"""Files are written whole or not at all, and paths that cannot be written are refused."""

import os
from pathlib import Path

import pytest

from dppa_mergekit.errors import DppaError
from dppa_mergekit.storage.output_files import (
    check_output,
    check_output_folder,
    check_recipe_output,
    stage_file,
    write_whole,
)


@pytest.mark.parametrize(
    ("content", "stored"), [("é\n", b"\xc3\xa9\n"), (b"\x00\xff", b"\x00\xff")]
)
def test_text_and_bytes(content: str | bytes, stored: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old, and longer", encoding="utf-8")
    write_whole(path, content)
    assert path.read_bytes() == stored
    assert list(tmp_path.iterdir()) == [path]


def test_until_the_block_ends_the_old_file_is_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")
    with stage_file(path) as staged:
        staged.write_text("new", encoding="utf-8")
        assert staged.parent == tmp_path
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")

    def fail_halfway() -> None:
        with stage_file(path) as staged:
            staged.write_text("half", encoding="utf-8")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_at_the_same_time_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with stage_file(path) as first, stage_file(path) as second:
        assert first != second
        first.write_text("first", encoding="utf-8")
        second.write_text("second", encoding="utf-8")
    # The outer block ends last.
    assert path.read_text(encoding="utf-8") == "first"


def test_refused_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DppaError, match=f"^{tmp_path} cannot be written: it is a folder; allowed"):
        check_output(tmp_path)
    missing = tmp_path / "missing"
    with pytest.raises(DppaError, match=f"/file cannot be written: there is no folder {missing};"):
        check_output(missing / "file")
    check_output(tmp_path / "file")
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(DppaError, match=f"the folder {tmp_path} cannot be written to; allowed"):
            check_output(tmp_path / "file")
    # Missing folders can be created below one that exists, but not below a file.
    check_output_folder(tmp_path / "missing" / "folder", "file")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(DppaError, match="cannot be written"):
        check_output_folder(tmp_path / "file" / "folder", "file")
    check_recipe_output(tmp_path / "recipe.yaml")
    with pytest.raises(DppaError, match=r"the extension must be \.yml or \.yaml"):
        check_recipe_output(tmp_path / "recipe.md")
