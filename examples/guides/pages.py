"""Run the blocks of README and guides in order, and write down what they print.

    python examples/guides/pages.py QUICKSTART [PAGE ...]

In:  QUICKSTART, the folder that `quickstart.py` has written, and Markdown pages (the
     two README.md and `examples/guides/` if none is named).
Out: the pages, with what their blocks print today, and `models.sha256`, the hash of the models that
     it was printed for: trained on another processor, models round otherwise.

The blocks of a page run one after the other in a copy of the quickstart's models:

- `sh` runs in bash and must succeed; with the word `fails` after it, it must fail;
- `sh` with the word `install` changes the machine, with `benchmark` takes long; neither is run;
- `yaml` and `python` are written to the file that their first line names (`# recipe.yml`);
- other `python` runs as a program of its own;
- `text` is the output of the block before it; a line `...` stands for any number of lines.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from markdown_it import MarkdownIt
from tqdm import tqdm

GUIDES = Path(__file__).resolve().parent
ROOT = GUIDES.parents[1]
PAGES = (ROOT / "README.md", GUIDES.parent / "README.md", *sorted(GUIDES.glob("*.md")))

MODELS = ("base", "math", "finance", "law")
"""The quickstart's models, which a page begins with, beside files of prompts."""

FINGERPRINT = GUIDES / "models.sha256"
"""The file with the hash of the models for which the pages were written."""

ELLIPSIS = "..."

NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"

MEASURED = rf"{NUMBER}(?= (?:s|GB)\b|  \S+$)"
"""Seconds, sizes of memory and disks, and of files, which hold versions of packages and pictures:
all differ from run to run, or from one environment to the next."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        language: The first word after the fence.
        word: The second word; empty if there is none.
        text: The lines between the fences.
        first: The number of the first of these lines, from 0.
        last: The number of the line of the closing fence.
    """

    language: str
    word: str
    text: str
    first: int
    last: int


@dataclass(frozen=True)
class Output:
    """What a block printed, and the block of the page that shows it."""

    shown: Block
    printed: str


class PageError(Exception):
    """A block does not do what its page says."""


def read_blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    blocks = []
    for token in MarkdownIt().parse(page):
        if token.type == "fence" and token.map is not None:
            words = [*token.info.split(), "", ""]
            first, end = token.map
            blocks.append(Block(words[0], words[1], token.content, first + 1, end - 1))
    return blocks


def fingerprint(quickstart: Path) -> str:
    """Return a hash of the weights of all models."""
    digest = hashlib.sha256()
    for name in MODELS:
        digest.update((quickstart / name / "model.safetensors").read_bytes())
    return digest.hexdigest()


def prepare(quickstart: Path, folder: Path) -> None:
    """Copy the models into `quickstart` in a folder, with the examples beside it."""
    for name in MODELS:
        shutil.copytree(quickstart / name, folder / "quickstart" / name)
    for prompts in quickstart.glob("*.txt"):
        shutil.copy(prompts, folder / "quickstart")
    shutil.copytree(
        GUIDES.parent, folder / "examples", ignore=shutil.ignore_patterns("paper", "__pycache__")
    )


def run_page(page: str, folder: Path) -> Iterator[Output]:
    """Run the blocks of a page, and yield each output that the page shows.

    Args:
        page: Its text.
        folder: A folder that `prepare` has filled.

    Raises:
        PageError: A block fails that should not, or the other way round.
    """
    printed: str | None = None
    for block in read_blocks(page):
        if block.language == "text" and printed is not None:
            yield Output(block, printed)
            printed = None
            continue
        printed = _run(block, folder / "quickstart")


def _run(block: Block, folder: Path) -> str | None:
    """Run a block; return what it prints, or None of a block that is not run."""
    named = re.match(r"# (\S+\.(?:yml|py))\n", block.text)
    if named:
        (folder / named[1]).write_text(block.text, encoding="utf-8")
        return None
    if block.word in ("install", "benchmark"):
        return None
    if block.language == "sh":
        return _start(["bash", "-euo", "pipefail", "-c", block.text], block, folder)
    if block.language == "python":
        return _start([sys.executable, "-c", block.text], block, folder)
    return None


def _start(command: Sequence[str], block: Block, folder: Path) -> str:
    """Run a command; return its stdout, or the errors of a block that is to fail."""
    finished = subprocess.run(
        command,
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "100",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    fails = block.word == "fails"
    if bool(finished.returncode) != fails:
        raise PageError(
            f"The block in line {block.first} ends with status {finished.returncode}:\n"
            f"{block.text}\n{finished.stdout}{finished.stderr}"
        )
    errors = [line for line in finished.stderr.splitlines() if line.startswith("Error: ")]
    return finished.stdout + "".join(f"{line}\n" for line in errors if fails)


def differ(output: Output, numbers: bool) -> str | None:
    """Say how an output differs from its page; None if it does not.

    Args:
        output: The output.
        numbers: Whether numbers count, except those that are `MEASURED`.
    """
    varying = MEASURED if numbers else NUMBER
    shown = [_shape(line, varying) for line in output.shown.text.splitlines()]
    printed = [_shape(line, varying) for line in output.printed.rstrip().splitlines()]
    pattern = "".join(
        r"(?:[^\n]*\n)*" if line == ELLIPSIS else re.escape(line) + r"\n" for line in shown
    )
    if re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)):
        return None
    return (
        f"The output in line {output.shown.first} is shown as\n{output.shown.text}\n"
        f"and is\n{output.printed}"
    )


def _shape(line: str, varying: str) -> str:
    """Return a line without numbers that may vary, and without the padding of columns."""
    if line == ELLIPSIS:
        return line
    return re.sub(r"-{2,}", "-", re.sub(r"\s+", " ", re.sub(varying, "#", line.strip())))


def renew(page: str, outputs: Sequence[Output]) -> str:
    """Return a page with the outputs as they are; those with an ellipsis remain if they hold."""
    lines = page.splitlines()
    for output in sorted(outputs, key=lambda output: -output.shown.first):
        if ELLIPSIS in output.shown.text.splitlines() and not differ(output, numbers=True):
            continue
        lines[output.shown.first : output.shown.last] = output.printed.rstrip().splitlines()
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("quickstart", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.argument("pages", type=click.Path(path_type=Path, dir_okay=False, exists=True), nargs=-1)
def main(quickstart: Path, pages: tuple[Path, ...]) -> None:
    """Run the blocks of PAGES with the models in QUICKSTART, and write down what they print.

    The hash of the models is written with all pages, not with some.
    """
    for path in tqdm(pages or PAGES, desc="pages"):
        page = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            prepare(quickstart, Path(folder))
            try:
                outputs = list(run_page(page, Path(folder)))
            except PageError as error:
                raise click.ClickException(f"{path}: {error}") from error
        path.write_text(renew(page, outputs), encoding="utf-8")
    if not pages:
        FINGERPRINT.write_text(f"{fingerprint(quickstart)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
