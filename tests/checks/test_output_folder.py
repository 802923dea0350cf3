"""Folders that a merge would write into."""

import shutil
from pathlib import Path

from check_command import of_recipe
from checkpoints import recipe


def test_output_folders(family: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(family / "base")
    for output in (family / "base", link):
        done = of_recipe(tmp_path, recipe(family), f"--output={output}")
        assert "which the merge would overwrite" in done.stdout
    older = tmp_path / "older"
    shutil.copytree(family / "law", older)
    done = of_recipe(tmp_path, recipe(family), f"--output={older}")
    assert done.exit_code == 0
    assert "it holds 1 weight files already" in done.stdout
