"""MergeBench's experts: from the check of a recipe to the publication of the merge.

    python examples/paper/mergebench/run_mergebench.py FOLDER --dry-run
    python examples/paper/mergebench/run_mergebench.py FOLDER --recipe llama-3.2-3b_80_by_inputs

With `--dry-run` it prints every command with an estimate of its needs, and checks the recipes
against files in FOLDER that have the headers of these models and no weights. Without it, it runs
the commands one after the other. A command that has ended does not run again, unless its recipe,
its tasks or an earlier step changes.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "large_models"))  # what both sets share

from mergebench_models import MERGEBENCH
from set_runner import make_command

main = make_command(MERGEBENCH)

if __name__ == "__main__":
    main()
