"""Run records of commands that write to the same folder."""

from __future__ import annotations

import multiprocessing
from datetime import datetime, timezone
from multiprocessing.synchronize import Barrier
from pathlib import Path

from dppa_mergekit.storage.run_record import read_records, write_record

WRITERS, RECORDS = 4, 8


def write_some(folder: Path, writer: int, ready: Barrier) -> None:
    ready.wait()
    for number in range(RECORDS):
        output = folder / f"{writer}_{number}.yml"
        output.write_text("merge_method: dppa\n")
        write_record(output, "search", {"writer": writer}, [number])


def test_commands_that_end_at_the_same_time_keep_each_others_records(tmp_path: Path) -> None:
    spawning = multiprocessing.get_context("spawn")
    ready = spawning.Barrier(WRITERS)
    writers = [
        spawning.Process(target=write_some, args=(tmp_path, writer, ready))
        for writer in range(WRITERS)
    ]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0] * WRITERS
    found = read_records(tmp_path)
    assert set(found) == {
        f"{writer}_{number}.yml" for writer in range(WRITERS) for number in range(RECORDS)
    }
    record = found["2_5.yml"]
    assert isinstance(record, dict)
    assert record["writer"] == 2
    assert record["results"] == [5]
    assert datetime.fromisoformat(str(record["time"])) <= datetime.now(timezone.utc)
