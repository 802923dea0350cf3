"""Write prompts of every domain of a pool, drawn from MergeBench's validation data.

    python examples/paper/mergebench/mergebench_prompts.py llama-3.2-3b FOLDER

These are the datasets from which MergeBench's own merging methods draw their statistics.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import datasets

sys.path.append(str(Path(__file__).resolve().parents[1] / "large_models"))  # what both sets share

from costs import PROMPTS
from mergebench_models import MERGEBENCH
from prompt_files import write_prompts

COLUMNS = {
    "instruction": "instruction",
    "math": "query",
    "multilingual": "inputs",
    "coding": "instruction",
    "safety": "prompt",
}
"""Domain -> the column of its instructions, by MergeBench's `merging/taskloader.py`."""

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{}\n\n### Response:\n"
)
"""Alpaca's format, which MergeBench's script puts all instructions into."""


def draw_prompts(domain: str) -> list[str]:
    """Return prompts of a domain, always the same."""
    rows = datasets.load_dataset(f"MergeBench/{domain}_val", split="train").shuffle(seed=0)
    rows = rows.select(range(min(PROMPTS, len(rows))))
    return [PROMPT.format(row[COLUMNS[domain]]) for row in rows]


@click.command()
@click.argument("pool", type=click.Choice(list(MERGEBENCH.pools)))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(pool: str, folder: Path) -> None:
    """Write the prompts of the domains of POOL to FOLDER."""
    domains = MERGEBENCH.pools[pool].domains
    write_prompts(folder, {domain.model: draw_prompts(name) for name, domain in domains.items()})


if __name__ == "__main__":
    main()
