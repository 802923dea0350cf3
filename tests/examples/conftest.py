"""The quickstart's models, which guides and notebook begin with."""

from pathlib import Path

import pytest
import quickstart
import torch
from filelock import FileLock


@pytest.fixture(scope="session")
def quickstart_models(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder of the models and their prompts, trained once for all workers."""
    root = tmp_path_factory.getbasetemp()
    shared = (root if worker_id == "master" else root.parent) / "quickstart_models"
    with FileLock(f"{shared}.lock"):
        if not (shared / "done").exists():
            torch.set_num_threads(1)  # as the quickstart does: trained weights depend on it
            quickstart.train_models(shared, 0, quickstart.BASE_TRAINING, quickstart.TUNING)
            quickstart.write_prompts(shared, 0)
            (shared / "done").touch()
    return shared
