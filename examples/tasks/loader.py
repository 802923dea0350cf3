"""Gives lm-evaluation-harness the JSONL files beside this module, from any working directory.

`data_files` of a task YAML would be looked for in the working directory.
"""

import json
from pathlib import Path
from typing import Any

import datasets


def load(file: str, **_: Any) -> dict[str, datasets.Dataset]:
    """`file`, named by a task's `dataset_kwargs`, as the only split of the task."""
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return {"test": datasets.Dataset.from_list(records)}
