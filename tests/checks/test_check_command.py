"""`mergekit-dppa check` as a command: its exit code, its JSON, and what it imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from check_command import check, of_recipe, said
from checkpoints import recipe, write_recipe

from dppa_mergekit.checks.check import check as check_in_python


def test_a_sound_recipe(family: Path, tmp_path: Path) -> None:
    done = of_recipe(tmp_path, recipe(family), "--sample", f"--output={tmp_path / 'out'}")
    assert done.exit_code == 0
    assert said(done, "error") == said(done, "warning") == []
    assert any("the merge needs about" in line for line in said(done, "note"))
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


@pytest.mark.parametrize("options", [["recipe.yml", "--sample", "--quick"], ["base", "--quick"]])
def test_neither_torch_nor_mergekit_is_needed(options: list[str], family: Path) -> None:
    write_recipe(family / "recipe.yml", recipe(family))
    arguments = ["check", str(family / options[0]), *options[1:]]
    script = (
        "import sys\n"
        "from dppa_mergekit.cli.main import main\n"
        f"main({arguments!r}, standalone_mode=False)"
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


def test_findings_in_python(family: Path) -> None:
    path = write_recipe(family / "recipe.yml", recipe(family, dtpe="bfloat16"))
    assert [str(finding) for finding in check_in_python(path) if finding.severity == "error"] == [
        "error: recipe: mergekit ignores 'dtpe': did you mean dtype?"
    ]
    (family / "law" / "tokenizer.json").unlink()
    (family / "law" / "model.safetensors").chmod(0o600)
    assert [str(finding) for finding in check_in_python(str(family / "law"))] == [
        f"note: {family / 'law'}: only its owner can read 1 weight file: model.safetensors.",
        f"error: {family / 'law'}: there is no tokenizer: the merge did not finish, or lost it.",
        f"note: {family / 'law'}: without a readable mergekit_config.yml, it cannot be compared "
        "with its base model.",
    ]
