"""LLaMA-2-7B with Abel, finance-chat and law-chat: from the check of a recipe to its publication.

    python examples/paper/llama2-7b/run.py FOLDER --dry-run
    python examples/paper/llama2-7b/run.py FOLDER --recipe three_80 --device cuda

With `--dry-run` it prints every command with an estimate of its needs, and checks the recipes
against files in FOLDER that have the headers of these models and no weights. Without it, it runs
the commands one after the other. A command that has ended does not run again, unless its recipe,
its tasks or an earlier step changes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "large_models"))  # what both sets share

from llama2_models import LLAMA2
from set_runner import make_command

main = make_command(LLAMA2)

if __name__ == "__main__":
    main()
