"""The command line: one group, `mergekit-dppa`."""

from __future__ import annotations

import logging
import os
import signal
import threading
import traceback

import click

from dppa_mergekit.cli.adamerge import adamerge
from dppa_mergekit.cli.analyze import analyze
from dppa_mergekit.cli.check import check
from dppa_mergekit.cli.evaluate import evaluate
from dppa_mergekit.cli.publish import publish
from dppa_mergekit.cli.search import search


class _Commands(click.Group):
    """Commands that say where a mistake was found, if they are to say more."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except click.ClickException:
            if context.params["verbose"]:
                traceback.print_exc()
            raise


@click.group(cls=_Commands)
@click.version_option(package_name="dppa-mergekit")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr, tracebacks too.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no warnings on stderr.")
def main(verbose: bool, quiet: bool) -> None:
    """Look at, tune, check, score and publish DPPA merges (arXiv 2403.02799)."""
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    if quiet:
        # Read by tqdm when it is first imported.
        os.environ["TQDM_DISABLE"] = "1"
    if threading.current_thread() is threading.main_thread():
        # As Ctrl-C does: what was found is kept, and what lies about is put away. Schedulers of
        # clusters send it some seconds before they kill.
        signal.signal(signal.SIGTERM, signal.default_int_handler)


for command in (check, analyze, search, adamerge, evaluate, publish):
    main.add_command(command)
