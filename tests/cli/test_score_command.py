"""`mergekit-dppa search --score-command`."""

import sys
from pathlib import Path

import pytest
import yaml
from search_runs import Command


def test_a_score_command(command: Command, tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    # The norm of a weight stands for a score: 0.4 is best.
    script.write_text(
        "import json, sys, pathlib, safetensors.torch as s\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "norm = sum(float(t.norm()) for f in folder.glob('*.safetensors')\n"
        "           for n, t in s.load_file(f).items() if 'up_proj' in n)\n"
        "print(json.dumps({'math_dev': norm, 'law_dev': 1.0}))\n",
        encoding="utf-8",
    )
    result = command(
        f"--score-command={sys.executable} {script} {{model}}",
        "--max-evaluations=4",
    )
    assert result.exit_code == 0, result.output
    tuned = yaml.safe_load((tmp_path / "tuned.yml").read_text(encoding="utf-8"))
    # A larger factor is a larger norm, as far as the budget goes.
    assert tuned["models"][0]["parameters"]["amplify_90"] > 1.0
    assert not list(tmp_path.glob(".dppa-*"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo nothing", "allowed is JSON"),
        ("echo '{}'", "printed no score for task 'math_dev'"),
        ("echo no file >&2; exit 3", "ended with 3: no file"),
        ("echo '{\"math_dev\": NaN}'", "printed nan for task math_dev"),
    ],
)
def test_a_score_command_that_fails(script: str, message: str, command: Command) -> None:
    result = command(f"--score-command={script} # {{model}}")
    assert result.exit_code == 1
    assert message in result.stderr
