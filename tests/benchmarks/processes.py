"""Run a command as a whole process and measure its time, memory, reads and writes. Linux only.

A process inherits the peak memory of its starter as its own, so the scripts that measure import
neither torch nor transformers.
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
_BLOCK = 512  # bytes of the unit in which Linux counts ru_inblock and ru_oublock
_TAIL = 3000


@dataclass(frozen=True)
class Measured:
    """Time, memory, reads and writes of one process.

    Attributes:
        wall_seconds: Seconds from its start to its end.
        user_seconds: Seconds of all its threads outside the kernel.
        system_seconds: Seconds of all its threads in the kernel.
        peak_resident_bytes: Resident memory, including pages of mapped checkpoints, which the
            kernel can drop.
        peak_anonymous_bytes: Allocated memory; it is sampled, so a short peak may be missed.
        storage_read_bytes: Bytes read from storage; reads from the page cache do not count.
        storage_written_bytes: Bytes handed to the page cache for writing.
        call_read_bytes: Bytes of read calls, from the page cache or not; without mapped files.
        call_written_bytes: Bytes of write calls.
        stderr: Everything that it wrote to stderr.
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
    """Run a command to its end and measure it; its stdout is dropped.

    Args:
        command: Program and arguments.
        environment: Its environment variables; None for those of this process.

    Raises:
        CommandError: Its exit status is not zero; the message ends with the tail of its stderr.
    """
    with tempfile.TemporaryFile() as stderr:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment
        )
        try:
            anonymous = _await_peak_anonymous(process.pid)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - start
        # The process has ended and is not reaped yet, so its final counts can still be read.
        calls = _read_fields(process.pid, "io")
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


def _await_peak_anonymous(pid: int) -> int:
    """Wait for the end of a process without reaping it; return its largest RssAnon in bytes."""
    peak = 0
    descriptor = os.pidfd_open(pid)
    try:
        while not select.select([descriptor], [], [], SAMPLE_SECONDS)[0]:
            peak = max(peak, _read_fields(pid, "status").get("RssAnon", 0) * 1024)
    finally:
        os.close(descriptor)
    return peak


def _read_fields(pid: int, file: str) -> dict[str, int]:
    """Return the lines `name: number` of a file of /proc; none if it cannot be read."""
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    parts = [line.replace(":", " ").split() for line in lines]
    return {part[0]: int(part[1]) for part in parts if len(part) > 1 and part[1].isdigit()}
