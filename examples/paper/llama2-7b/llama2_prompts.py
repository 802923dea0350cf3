"""Write prompts of every domain of a pool: the first items of its dev tasks, in equal shares.

python examples/paper/llama2-7b/llama2_prompts.py three FOLDER
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import click

sys.path.append(str(Path(__file__).resolve().parents[1] / "large_models"))  # what both sets share

from costs import PROMPTS
from llama2_models import HERE, LLAMA2
from prompt_files import write_prompts


def load_data() -> ModuleType:
    """Return the module of the tasks folder, as lm-eval loads it."""
    path = HERE / "tasks" / "data.py"
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@click.command()
@click.argument("pool", type=click.Choice(list(LLAMA2.pools)))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(pool: str, folder: Path) -> None:
    """Write the prompts of the domains of POOL to FOLDER."""
    data = load_data()
    prompts = {}
    for domain in LLAMA2.pools[pool].domains.values():
        share = PROMPTS // len(domain.tasks)
        prompts[domain.model] = [
            item["prompt"]
            for task in domain.tasks
            for item in list(data.load(task.test.removesuffix("_test"), "dev")["test"])[:share]
        ]
    write_prompts(folder, prompts)


if __name__ == "__main__":
    main()
