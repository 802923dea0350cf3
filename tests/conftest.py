import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import tensors_of, write_recipe
from click.testing import CliRunner, Result
from commands import Merge, RunYaml
from hub_process import Hub, serving
from mergekit.io.tasks import LoaderCache
from mergekit.scripts.run_yaml import main as mergekit_yaml

transformers.utils.logging.disable_progress_bar()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long tests, so that no process is left with one while the others idle."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Several threads are slower than one on tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _fresh_loaders() -> Iterator[None]:
    """mergekit keeps its loaders for the life of the process, by path."""
    yield
    LoaderCache.loaders.clear()


@pytest.fixture(autouse=True)
def _progress_bars() -> Iterator[None]:
    """`mergekit-dppa -q` turns progress bars off for the life of the process."""
    yield
    os.environ.pop("TQDM_DISABLE", None)


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test measures its own models, and leaves the user's cache alone."""
    monkeypatch.setenv("DPPA_MERGEKIT_CACHE", "off")


@pytest.fixture
def run_yaml(tmp_path: Path) -> RunYaml:
    """mergekit's own command, in this process: run_yaml(recipe, *options) writes tmp_path/out."""

    def run(content: Mapping[str, object], *options: str, output: str = "out") -> Result:
        path = write_recipe(tmp_path / "recipe.yml", content)
        LoaderCache.loaders.clear()
        return CliRunner().invoke(mergekit_yaml, [str(path), str(tmp_path / output), *options])

    return run


@pytest.fixture
def merge(run_yaml: RunYaml, tmp_path: Path) -> Merge:
    """As run_yaml, for merges that succeed: returns the merged tensors."""

    def run(content: Mapping[str, object], *options: str, output: str = "out"):
        result = run_yaml(content, *options, output=output)
        if result.exit_code:
            raise AssertionError(result.output) from result.exception
        return tensors_of(tmp_path / output)

    return run


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A stand-in for the Hub, on loopback."""
    with serving(tmp_path) as found:
        yield found
