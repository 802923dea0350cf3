"""The reader of headers, against safetensors itself."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from dppa_mergekit.checkpoints.safetensors_header import read_headers, read_raw_header
from dppa_mergekit.errors import CheckpointError

TENSORS = {
    "half": torch.ones(3, 4, dtype=torch.bfloat16),
    "scalar": torch.tensor(2.0),
    "empty": torch.ones(0, 5),
    "numbers": torch.arange(7),
    "eights": torch.ones(2, 2).to(torch.float8_e4m3fn),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(TENSORS, path, {"format": "pt"})
    return path


def test_headers_are_those_of_safetensors(file: Path) -> None:
    headers = read_headers(file)
    content = file.read_bytes()
    with safe_open(file, "pt") as opened:
        assert set(headers) == set(opened.keys()) == set(TENSORS)
        for name, header in headers.items():
            stored = opened.get_slice(name)
            assert header.dtype == stored.get_dtype()
            assert header.shape == tuple(stored.get_shape())
            assert header.span is not None
            start, size = header.span
            raw = TENSORS[name].view(-1).view(torch.uint8).numpy().tobytes()
            assert content[start : start + size] == raw
    assert content.startswith(read_raw_header(file))


@pytest.mark.parametrize("length", [0, 4, 8, 20])
def test_a_header_that_is_cut_off(length: int, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="the header is cut off"):
        read_headers(file)


def test_tensors_that_are_cut_off(file: Path) -> None:
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"{size - 1} of {size} bytes are there"):
        read_headers(file)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [1]}}', b"\xff"]
)
def test_a_header_that_is_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(content).to_bytes(8, "little") + content)
    with pytest.raises(CheckpointError, match="is truncated or damaged"):
        read_headers(path)


def test_metadata_are_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content)
    assert read_headers(path) == {}
