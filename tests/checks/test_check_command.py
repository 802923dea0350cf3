"""`mergekit-dppa check` as a command: its exit code, its JSON, and what it imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

from check_command import check, of_recipe, said
from checkpoints import recipe, write_recipe


def test_a_sound_recipe(family: Path, tmp_path: Path) -> None:
    done = of_recipe(tmp_path, recipe(family), "--sample", f"--output={tmp_path / 'out'}")
    assert done.exit_code == 0
    assert said(done, "error") == said(done, "warning") == []
    assert any("are needed" in line for line in said(done, "note"))
    assert "no errors, no warnings" in done.stdout


def test_as_json(family: Path, tmp_path: Path) -> None:
    content = recipe(family)
    content["dtpe"] = 1
    found = json.loads(of_recipe(tmp_path, content, "--json").stdout)
    assert found[0]["severity"] == "error"
    assert set(found[0]) == {"severity", "subject", "sentence"}


def test_misuse(family: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yml", recipe(family))
    assert "--verify is for a folder" in check(path, "--verify=all").output
    assert "are for a recipe" in check(family, "--sample").output


def test_neither_torch_nor_mergekit_is_needed(family: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path / "recipe.yml", recipe(family))
    script = (
        "import sys\n"
        "from dppa_mergekit.cli.main import main\n"
        f"main(['check', {str(path)!r}, '--sample'], standalone_mode=False)"
    )
    wrapped = (
        f"import sys\ntry:\n    exec({script!r})\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules and 'mergekit' not in sys.modules"
    )
    environment = {**os.environ, "DPPA_MERGEKIT_AUTOLOAD": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", wrapped], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr
