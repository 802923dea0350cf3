"""The notebook runs from its first cell to the last, and prints what it keeps."""

import os
import shutil
import sys
from pathlib import Path

import nbformat
import pages
import pytest
from nbclient import NotebookClient

NOTEBOOK = pages.GUIDES.parent / "quickstart.ipynb"
CELLS = 10


def outputs(notebook: nbformat.NotebookNode) -> list[str]:
    """What every cell has printed."""
    return [
        "".join(output.text for output in cell.outputs if output.output_type == "stream")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def pictures(notebook: nbformat.NotebookNode) -> int:
    return sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


@pytest.mark.long
def test_the_notebook(
    quickstart_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages.prepare(quickstart_models, tmp_path)
    examples = tmp_path / "examples"
    shutil.move(tmp_path / "quickstart", examples / "quickstart")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    kept = nbformat.read(NOTEBOOK, as_version=4)
    ran = NotebookClient(
        nbformat.read(NOTEBOOK, as_version=4), resources={"metadata": {"path": str(examples)}}
    ).execute()
    assert len(outputs(kept)) == CELLS
    assert pictures(ran) == pictures(kept) == 2
    if pages.fingerprint(quickstart_models) == pages.FINGERPRINT.read_text("utf-8").strip():
        for number, (before, after) in enumerate(zip(outputs(kept), outputs(ran), strict=True)):
            block = pages.Block("text", "", before, number, number)
            assert pages.differ(pages.Output(block, after)) is None
