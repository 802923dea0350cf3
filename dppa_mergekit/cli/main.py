"""The command line: one group, `mergekit-dppa`."""

from __future__ import annotations

import logging
import os
import signal
import threading
import traceback

import click

from dppa_mergekit.cli.activations import activations
from dppa_mergekit.cli.adamerge import adamerge
from dppa_mergekit.cli.analyze import analyze
from dppa_mergekit.cli.check import check
from dppa_mergekit.cli.evaluate import evaluate
from dppa_mergekit.cli.publish import publish
from dppa_mergekit.cli.search import search


class _Commands(click.Group):
    """The commands; with --verbose, a mistake is shown with its traceback."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except click.ClickException:
            if context.params["verbose"]:
                traceback.print_exc()
            raise


@click.group(cls=_Commands)
@click.version_option(package_name="dppa-mergekit")
@click.option("-v", "--verbose", is_flag=True, help="Show more on stderr, and tracebacks.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress and no warnings on stderr.")
def main(verbose: bool, quiet: bool) -> None:
    """Analyze, tune, check, evaluate and publish DPPA merges (arXiv 2403.02799)."""
    level = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s")
    if quiet:
        # tqdm reads this when it is first imported, so before the import below.
        os.environ["TQDM_DISABLE"] = "1"
    from dppa_mergekit.report.progress import write_logs_around_bars

    write_logs_around_bars()
    if threading.current_thread() is threading.main_thread():
        # End as after Ctrl-C: keep the results so far and remove temporary folders. Schedulers of
        # clusters send SIGTERM some seconds before they kill.
        signal.signal(signal.SIGTERM, signal.default_int_handler)


for command in (check, analyze, search, adamerge, activations, evaluate, publish):
    main.add_command(command)
