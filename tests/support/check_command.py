"""`mergekit-dppa check` in this process, and what it says."""

from collections.abc import Mapping
from pathlib import Path

from checkpoints import write_recipe
from click.testing import CliRunner, Result

from dppa_mergekit.cli.main import main


def check(path: Path, *options: str) -> Result:
    done = CliRunner().invoke(main, ["check", str(path), *options])
    assert isinstance(done.exception, SystemExit | None), done.output
    assert done.exit_code in (0, 1), done.output
    return done


def said(done: Result, severity: str) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith(f"{severity}: ")]


def of_recipe(tmp_path: Path, content: Mapping[str, object], *options: str) -> Result:
    return check(write_recipe(tmp_path / "recipe.yml", content), *options)


def sound(done: Result) -> None:
    assert (done.exit_code, said(done, "warning")) == (0, []), done.stdout
