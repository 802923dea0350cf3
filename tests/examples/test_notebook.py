"""The notebook runs from its first cell to the last, and prints what it keeps."""

import os
import re
import shutil
import sys
from copy import deepcopy
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


def with_statuses(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook, with an error where a command fails: IPython itself goes on."""
    changed = deepcopy(notebook)
    for cell in changed.cells:
        if cell.cell_type == "code":
            cell.source = re.sub(
                r"^(!(?:.*\\\n)*.*)$",
                r"\1\nassert _exit_code == 0",
                cell.source,
                flags=re.MULTILINE,
            )
    return changed


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
        with_statuses(kept), resources={"metadata": {"path": str(examples)}}
    ).execute()
    assert len(outputs(kept)) == CELLS
    assert pictures(ran) == pictures(kept) == 2
    if pages.fingerprint(quickstart_models) == pages.FINGERPRINT.read_text("utf-8").strip():
        for number, (before, after) in enumerate(zip(outputs(kept), outputs(ran), strict=True)):
            block = pages.Block("text", "", before, number, number)
            assert pages.differ(pages.Output(block, after), numbers=True) is None
