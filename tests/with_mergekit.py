"""Run the tests with a given release of mergekit, in a fresh environment.

    python tests/with_mergekit.py 0.1.6 --first torch==2.13.0 -- -n 2 -x tests/merging

The environment is made in a temporary folder and holds this checkout with its test requirements;
then that release of mergekit takes the place of the one that pyproject.toml allows. What follows
the two hyphens goes to pytest. Exits with its status.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Make the environment, run pytest in it, and return its status."""
    parser = argparse.ArgumentParser(
        description="Run the tests with a release of mergekit.",
        epilog="What follows two hyphens goes to pytest.",
    )
    parser.add_argument("release", help="the release, such as 0.1.5")
    parser.add_argument(
        "--first",
        action="append",
        default=[],
        metavar="REQUIREMENT",
        help="a requirement to install before all others, such as a build of torch",
    )
    own, pytest = _split(sys.argv[1:])
    given = parser.parse_args(own)
    with tempfile.TemporaryDirectory(prefix="mergekit-") as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        installs = [
            *([requirement] for requirement in given.first),
            ["--editable", f"{CHECKOUT}[test]"],
            # pip warns that pyproject.toml asks for another, and installs it.
            [f"mergekit=={given.release}"],
        ]
        for arguments in installs:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)
        return subprocess.run([python, "-m", "pytest", *pytest], cwd=CHECKOUT).returncode


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before two hyphens, and those after."""
    if "--" not in arguments:
        return arguments, []
    position = arguments.index("--")
    return arguments[:position], arguments[position + 1 :]


if __name__ == "__main__":
    sys.exit(main())
