"""The command line as a whole."""

import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import recipe, save_family, write_recipe
from click.testing import CliRunner

from dppa_mergekit.cli.main import main


def test_help_needs_neither_torch_nor_mergekit() -> None:
    script = """
import sys
from dppa_mergekit.cli.main import main

try:
    main(["--help"])
except SystemExit as ended:
    assert ended.code == 0
else:
    raise AssertionError("--help did not end the program")
assert not {"torch", "mergekit", "transformers"} & set(sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for name in main.commands:
        assert name in ended.stdout


@pytest.mark.parametrize("name", list(main.commands))
def test_every_command_shows_an_example(name: str) -> None:
    done = CliRunner().invoke(main, [name, "--help"])
    assert f"mergekit-dppa {name} " in done.output


def test_a_traceback_where_more_is_wanted(tmp_path: Path) -> None:
    prompts = tmp_path / "math.txt"
    prompts.write_text("", encoding="utf-8")
    path = write_recipe(tmp_path / "recipe.yml", recipe(save_family(tmp_path)))
    command = ["adamerge", str(path), f"--prompts={prompts}", f"--output={tmp_path / 'tuned.yml'}"]
    plain = CliRunner().invoke(main, command)
    more = CliRunner().invoke(main, ["-v", *command])
    for done in (plain, more):
        assert done.exit_code == 1
        assert f"Error: {prompts} holds no prompts." in done.stderr
    assert "Traceback" not in plain.stderr
    assert "Traceback" in more.stderr


def test_quiet(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    models = {"math": {"weight": [{"filter": "mlp", "value": 0.4}]}}
    path = write_recipe(tmp_path / "recipe.yml", recipe(family, "dp", models))
    (tmp_path / "math.txt").write_text("w1 w2\n", encoding="utf-8")
    script = "from dppa_mergekit.cli.main import main; import sys; main(sys.argv[1:])"
    arguments = [
        "adamerge",
        str(path),
        f"--prompts={tmp_path / 'math.txt'}",
        f"--output={tmp_path / 'tuned.yml'}",
        "--objective=entropy",
        "--steps=1",
    ]
    said = []
    for options in ((), ("--quiet",)):
        command = [sys.executable, "-c", script, *options, *arguments]
        said.append(subprocess.run(command, capture_output=True, text=True))
    # A filter alone leaves most tensors without a weight: that ends the run, after the warning.
    loud, quiet = said
    for ended in said:
        assert ended.returncode == 1
        assert ended.stderr.splitlines()[-1].startswith("Error: ")
    assert "has only filters" in loud.stderr
    assert "has only filters" not in quiet.stderr
