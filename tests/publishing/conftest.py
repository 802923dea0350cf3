"""A merge that is ready to be published."""

from pathlib import Path

import pytest
from checkpoints import recipe, save_family
from commands import Merge


@pytest.fixture
def merged(tmp_path: Path, merge: Merge) -> Path:
    """A folder with a base, math and law, and their merge `out`."""
    save_family(tmp_path)
    merge(recipe(tmp_path))
    return tmp_path
