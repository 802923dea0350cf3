"""Families of tiny models that several tests of merging share."""

from pathlib import Path

import pytest
import torch
from checkpoints import save_family
from three_models import MODELS


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Llama in float32."""
    return save_family(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def bfloat16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in bfloat16."""
    return save_family(tmp_path_factory.mktemp("llama_bf16"), dtype=torch.bfloat16)


@pytest.fixture(scope="session", params=["float32", "bfloat16"])
def three_models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and the models of tests/support/three_models.py, in each dtype."""
    return save_family(
        tmp_path_factory.mktemp(request.param),
        dtype=getattr(torch, request.param),
        tuned=list(MODELS),
    )
