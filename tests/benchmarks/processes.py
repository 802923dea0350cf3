"""Run one command as a whole process and measure what it took. Linux only.

A process counts the peak memory of the one that started it as its own, so the scripts that
measure import neither torch nor transformers.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.02
_BLOCK = 512  # bytes; the unit in which Linux counts ru_inblock and ru_oublock
_TAIL = 3000


@dataclass(frozen=True)
class Measured:
    """What one process took.

    Attributes:
        wall_seconds: From its start to its end.
        user_seconds: Of all its threads.
        system_seconds: Of all its threads, in the kernel.
        peak_resident_bytes: Pages of mapped checkpoints included, which the kernel can drop.
        peak_anonymous_bytes: Memory that it allocated; sampled, so a short peak may be missed.
        storage_read_bytes: What had to come from storage: nothing where the page cache has it.
        storage_written_bytes: What it handed to the page cache to be written.
        call_read_bytes: By read calls, from the page cache or not; mapped files are not in it.
        call_written_bytes: By write calls.
        stderr: All that it wrote there.
    """

    wall_seconds: float
    user_seconds: float
    system_seconds: float
    peak_resident_bytes: int
    peak_anonymous_bytes: int
    storage_read_bytes: int
    storage_written_bytes: int
    call_read_bytes: int | None
    call_written_bytes: int | None
    stderr: str = ""


class CommandError(RuntimeError):
    """The command ended with an error."""


def measure(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Measured:
    """Run a command to its end; what it writes to stdout is dropped.

    Args:
        command: Program and arguments.
        environment: All of its environment variables; None for those of this process.

    Raises:
        CommandError: Its exit status is not zero; ends with the tail of its stderr.
    """
    with tempfile.TemporaryFile() as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment
        )
        try:
            anonymous = _peak_anonymous(process.pid)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - start
        # It has ended and is not reaped yet: its final counts can still be read.
        calls = _fields(process.pid, "io")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stderr.seek(0)
        text = stderr.read().decode(errors="replace")
    if process.returncode:
        raise CommandError(f"{' '.join(command)} ended with {process.returncode}:\n{text[-_TAIL:]}")
    return Measured(
        wall_seconds=wall,
        user_seconds=usage.ru_utime,
        system_seconds=usage.ru_stime,
        peak_resident_bytes=usage.ru_maxrss * 1024,
        peak_anonymous_bytes=anonymous,
        storage_read_bytes=usage.ru_inblock * _BLOCK,
        storage_written_bytes=usage.ru_oublock * _BLOCK,
        call_read_bytes=calls.get("rchar"),
        call_written_bytes=calls.get("wchar"),
        stderr=text,
    )


def _peak_anonymous(pid: int) -> int:
    """Wait for the end of a process, without reaping it; returns its largest RssAnon."""
    peak = 0
    descriptor = os.pidfd_open(pid)
    try:
        while not select.select([descriptor], [], [], SAMPLE_SECONDS)[0]:
            peak = max(peak, _fields(pid, "status").get("RssAnon", 0) * 1024)
    finally:
        os.close(descriptor)
    return peak


def _fields(pid: int, file: str) -> dict[str, int]:
    """The lines `name: number` of a file of /proc; none where it cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    parts = [line.replace(":", " ").split() for line in lines]
    return {part[0]: int(part[1]) for part in parts if len(part) > 1 and part[1].isdigit()}
