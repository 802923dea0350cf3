"""The journal: a search that is killed at any moment continues and ends as an undisturbed one."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import landscape
import pytest

from dppa_mergekit.errors import DppaError
from dppa_mergekit.storage import journal as journals
from dppa_mergekit.storage.journal import FORMAT, open_journal

SCRIPT = Path(landscape.__file__)


def start(journal: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(journal)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_killed_at_any_moment(tmp_path: Path) -> None:
    undisturbed, errors = start(tmp_path / "whole").communicate()
    assert undisturbed.startswith("{'amplify_90'"), errors
    random = Random(1)
    journal = tmp_path / "killed"
    killed = 0
    for _ in range(6):
        size = journal.stat().st_size if journal.exists() else 0
        process = start(journal)
        while process.poll() is None and (not journal.exists() or journal.stat().st_size == size):
            time.sleep(0.002)
        time.sleep(0.1 * random.random())
        if process.poll() is None:
            killed += 1
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert killed >= 2
    found, errors = start(journal).communicate()
    assert found == undisturbed, errors
    strip = [{**line, "seconds": 0} for line in lines(tmp_path / "killed")]
    assert strip == [{**line, "seconds": 0} for line in lines(tmp_path / "whole")]


def test_a_torn_last_line_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "journal"
    with open_journal(path, {"recipe": 1}) as journal:
        journal.add({"fold": 0})
        journal.add({"fold": 1})
    path.write_bytes(path.read_bytes()[:-4])
    with open_journal(path, {"recipe": 1}) as journal:
        assert journal.entries == [{"fold": 0}]
        journal.add({"fold": 1})
    assert "incomplete and is dropped" in caplog.text
    assert lines(path) == [{"format": FORMAT, "recipe": 1}, {"fold": 0}, {"fold": 1}]


def test_a_header_that_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text('{"reci', encoding="utf-8")
    with open_journal(path, {"recipe": 1}) as journal:
        assert journal.entries == []
    assert lines(path) == [{"format": FORMAT, "recipe": 1}]


def test_a_journal_of_another_search(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with open_journal(path, {"recipe": 1, "tasks": [2], "seed": 0}):
        pass
    with (
        pytest.raises(DppaError, match=r"differs in tasks, seed; delete it"),
        open_journal(path, {"recipe": 1, "tasks": [3], "seed": 1}),
    ):
        pass


@pytest.mark.parametrize("header", [{"recipe": 1}, {"format": FORMAT + 1, "recipe": 1}])
def test_a_journal_of_another_format_is_refused_and_kept(
    header: dict[str, object], tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    content = f'{json.dumps(header)}\n{{"fold": 0}}\n'
    path.write_text(content, encoding="utf-8")
    found = header.get("format", 1)
    sentence = f"its format is {found}, and this version continues format {FORMAT} only"
    with pytest.raises(DppaError, match=sentence), open_journal(path, {"recipe": 1}):
        pass
    assert path.read_text(encoding="utf-8") == content


def test_a_raised_format_refuses_the_journals_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    with open_journal(path, {"recipe": 1}) as journal:
        journal.add({"fold": 0})
    with open_journal(path, {"recipe": 1}) as journal:
        assert journal.entries == [{"fold": 0}]
    monkeypatch.setattr(journals, "FORMAT", FORMAT + 1)
    with (
        pytest.raises(DppaError, match="another version of dppa-mergekit"),
        open_journal(path, {"recipe": 1}),
    ):
        pass


def test_a_second_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with open_journal(path, {"recipe": 1}):
        process = start(path)
        _, errors = process.communicate()
    assert process.returncode == 1
    assert "Another run is writing" in errors


@pytest.mark.parametrize(
    "content", ['{"recipe": 1}\nnothing\n', "[]\n", "7\n", f'{{"format": {FORMAT}}}\n"fold"\n']
)
def test_a_damaged_journal(content: str, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DppaError, match=r"is damaged: .*; delete it"), open_journal(path, {}):
        pass


def test_a_folder_in_the_place_of_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.mkdir()
    for _ in range(2):  # the lock is given back
        with (
            pytest.raises(DppaError, match=r"journal cannot be written: .*[Ii]s a directory"),
            open_journal(path, {}),
        ):
            pass


def test_a_journal_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    with open_journal(path, {}):
        pass
    open_file = Path.open

    def refuse_writing(given: Path, mode: str = "r", *more: object, **options: object) -> object:
        if mode != "r" and given == path:
            raise PermissionError(13, "Permission denied", str(given))
        return open_file(given, mode, *more, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse_writing)
    with (
        pytest.raises(DppaError, match=r"journal cannot be written: .*Permission denied"),
        open_journal(path, {}),
    ):
        pass
