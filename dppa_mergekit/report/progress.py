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


class BarClearingHandler(logging.Handler):
    """Takes the progress bars off the terminal before another handler writes a message.

    The line of a bar does not end, so a message written after it would be glued to it. A bar
    draws itself again with its next step.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Clear the bars; handlers of the root logger are called after this one."""
        for bar in list(getattr(tqdm, "_instances", ())):
            bar.clear()
        # Where nobody has set logging up, Python prints warnings only if it finds no handler.
        last = logging.lastResort
        if last is not None and not logging.getLogger().handlers and record.levelno >= last.level:
            last.handle(record)


def write_logs_around_bars() -> None:
    """Let messages of this package stand on lines of their own; safe to call again."""
    logger = logging.getLogger("dppa_mergekit")
    if not any(isinstance(handler, BarClearingHandler) for handler in logger.handlers):
        logger.addHandler(BarClearingHandler())
