"""Progress bars, and log messages that do not break them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm


class Progress(Protocol):
    """The part of tqdm that long passes use."""

    def update(self, n: float | None = 1) -> bool | None:
        """Advance by n."""
        ...


@contextmanager
def progress_bar(total: int) -> Iterator[Progress]:
    """A progress bar on stderr over the tensors of the statistics pass."""
    with tqdm(total=total, desc="Delta statistics", unit="tensor") as bar:
        yield bar


class BarAwareHandler(logging.Handler):
    """Hands records to the root logger's handlers while all progress bars are out of the way.

    A bar's line does not end, so a message written over it would be glued to it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Clear the bars, let the root logger handle the record, and draw the bars again."""
        with tqdm.external_write_mode():
            logging.getLogger().handle(record)


def write_logs_around_bars() -> None:
    """Let messages of this package stand on lines of their own; safe to call again."""
    logger = logging.getLogger("dppa_mergekit")
    if not any(isinstance(handler, BarAwareHandler) for handler in logger.handlers):
        logger.addHandler(BarAwareHandler())
    logger.propagate = False
