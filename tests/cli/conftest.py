"""`mergekit-dppa search` on tiny models."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from search_models import save_search
from search_runs import Command

from dppa_mergekit.cli.main import main


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_search(tmp_path_factory.mktemp("search"))


@pytest.fixture
def command(saved: Path, tmp_path: Path) -> Command:
    """command(*options, recipe=..., tasks=...) writes tmp_path/tuned.yml."""

    def run(
        *options: str,
        recipe: Path | str = "recipe.yml",
        tasks: Path | str = "tasks.yml",
        output: Path | str | None = None,
    ) -> Result:
        arguments = [
            str(saved / recipe),
            f"--tasks={saved / tasks}",
            f"--output={tmp_path / 'tuned.yml' if output is None else output}",
        ]
        return CliRunner().invoke(main, ["search", *arguments, *options])

    return run
