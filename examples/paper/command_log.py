"""Commands of `mergekit-dppa`, each run once for the same files.

In:  a command's arguments, as a user would type them in the working directory.
Out: what the command writes, and how long it took. A command that has ended is listed in
     `commands.txt`, with a digest of the recipes and tasks files among its arguments, and its
     seconds: while these files stay the same, it does not run again. Everything that commands print
     goes to `log.txt`.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from hashlib import sha256
from pathlib import Path

import click

from dppa_mergekit.cli import main as cli

MAIN_FILES = {"analyze": "analysis.json", "evaluate": "evaluation.json"}
"""Command whose output is a folder -> the file that it writes there."""


def run_once(title: str, *arguments: str) -> float:
    """Run a command of `mergekit-dppa`, unless it has ended here before with the same files.

    Args:
        title: What progress is reported under, on stderr.
        arguments: The command's name and its arguments, `--output` among them.

    Returns:
        The seconds that it took; of a command that was killed, those of its last run.

    Raises:
        click.ClickException: The command failed.
    """
    typed = " ".join(["mergekit-dppa", *arguments])
    output = arguments[arguments.index("--output") + 1]
    digest = _digest_files(argument for argument in arguments if argument != output)
    listed = Path("commands.txt")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    ended = dict(line.split("  # ") for line in lines)  # the last of several runs counts
    ended_digest, _, took = ended.get(typed, "").partition(" ")
    if ended_digest == digest and Path(output, MAIN_FILES.get(arguments[0], "")).exists():
        return float(took)
    if typed in ended:
        Path(f"{output}.journal.jsonl").unlink(missing_ok=True)  # it is of another recipe
    began = time.monotonic()
    logging.getLogger().handlers.clear()  # the last command's handler writes to a closed file
    with (
        Path("log.txt").open("a", encoding="utf-8") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        try:
            cli.main.main(list(arguments), "mergekit-dppa", standalone_mode=False)
        except click.Abort:
            raise
        except Exception as error:
            traceback.print_exc()
            raise click.ClickException(f"{typed}: {describe_error(error)}") from error
    seconds = time.monotonic() - began
    with listed.open("a", encoding="utf-8") as file:
        file.write(f"{typed}  # {digest} {seconds:.0f}\n")
    click.echo(f"{title}: {typed:.100} ({seconds:.0f} s)", err=True)
    return seconds


def describe_error(error: BaseException) -> str:
    """Return an error's own message, or its type and arguments."""
    return error.message if isinstance(error, click.ClickException) else repr(error)


def _digest_files(arguments: Iterable[str]) -> str:
    """Return a digest of the recipes and tasks files among a command's arguments."""
    digest = sha256()
    for argument in arguments:
        if argument.endswith(".yml"):
            digest.update(Path(argument).read_bytes())
    return digest.hexdigest()[:12]
