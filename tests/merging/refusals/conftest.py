"""A family that a test may damage."""

import shutil
from pathlib import Path

import pytest
from checkpoints import save_family


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def family(pristine: Path, tmp_path: Path) -> Path:
    """A family that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "family"))
