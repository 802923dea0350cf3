"""The models that the tests of checks begin with."""

from pathlib import Path

import pytest
from checkpoints import save_family


@pytest.fixture
def family(tmp_path: Path) -> Path:
    return save_family(tmp_path)
