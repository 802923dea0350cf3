"""How an experiment's commands are run, told, and not run again."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from operator import truediv
from pathlib import Path

import click
import miniature
import pytest
import running
from experiment import Experiment, Subject

from dppa_mergekit.cli import main as cli


def subject(folder: Path, name: str = "one", device: str = "cpu") -> Subject:
    return Subject(name, folder, "./base", miniature.tasks(smoke=True), {}, device)


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What was asked of a command that stands in for ours; some recipes are beyond it."""
    asked: list[tuple[str, ...]] = []

    @click.command(context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def main(arguments: tuple[str, ...]) -> None:
        asked.append(arguments)
        if "fail.yml" in arguments:
            raise KeyError("density")
        if "stop.yml" in arguments:
            raise KeyboardInterrupt
        Path(arguments[arguments.index("--output") + 1]).write_text("found\n")

    monkeypatch.setattr(cli, "main", main)
    monkeypatch.chdir(tmp_path)
    for name in ("recipe.yml", "fail.yml", "stop.yml"):
        Path(name).write_text("weight: 1\n")
    return asked


def test_a_command_ends_once_for_the_same_files(ran: list[tuple[str, ...]], tmp_path: Path) -> None:
    one = Experiment(subject(tmp_path), miniature.PLAN)
    asked = ("search", "recipe.yml", "--output", "tuned.yml")
    one._command(*asked)
    one._command(*asked)
    assert ran == [asked]
    one._command("search", "recipe.yml", "--output", "other.yml")
    assert len(ran) == 2
    # A recipe that says something else is another question; so is a result that was deleted.
    Path("recipe.yml").write_text("weight: 2\n")
    one._command(*asked)
    assert len(ran) == 3
    Path("tuned.yml").unlink()
    one._command(*asked)
    assert len(ran) == 4
    # What is there is of the last of them; the journal of another is no use.
    Path("tuned.yml.journal.jsonl").write_text("{}")
    Path("recipe.yml").write_text("weight: 1\n")
    one._command(*asked)
    assert len(ran) == 5
    assert not Path("tuned.yml.journal.jsonl").exists()
    lines = Path("commands.txt").read_text().splitlines()
    assert [line.split("  # ")[0] for line in lines] == [
        f"mergekit-dppa {' '.join(arguments)}" for arguments in ran
    ]


def test_a_command_that_fails_is_named_and_begins_anew(
    ran: list[tuple[str, ...]], tmp_path: Path
) -> None:
    one = Experiment(subject(tmp_path), miniature.PLAN)
    for _ in range(2):
        with pytest.raises(click.ClickException) as raised:
            one._command("search", "fail.yml", "--output", "tuned.yml")
        said = "mergekit-dppa search fail.yml --output tuned.yml: KeyError('density')"
        assert raised.value.message == said
    assert len(ran) == 2
    assert "Traceback" in Path("log.txt").read_text()
    assert not Path("commands.txt").exists()


def test_ctrl_c_ends_a_worker(
    ran: list[tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(status: int) -> None:
        raise BrokenProcessPool(status)

    monkeypatch.setattr("os._exit", ended)
    one = Experiment(subject(tmp_path), miniature.PLAN)
    part = partial(one._command, "search", "stop.yml", "--output", "tuned.yml")
    with pytest.raises(BrokenProcessPool, match="130"):
        running._work(partial(one.run, part))
    assert not Path("commands.txt").exists()


def test_failures_are_told_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    begun: dict[Future[None], str] = {}
    for name, error in (
        ("good", None),
        ("bad", click.ClickException("search: no tasks.")),
        ("worse", KeyError("density")),
    ):
        future: Future[None] = Future()
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
        begun[future] = name
    assert running._failed(begun) == {"bad", "worse"}
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "bad: search: no tasks.",
        "worse: KeyError('density')",
    ]
    killed: Future[None] = Future()
    killed.set_exception(BrokenProcessPool())
    with pytest.raises(click.ClickException, match="A process was killed"):
        running._failed({killed: "good"})


def test_a_training_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.ClickException, match="Not all models are trained"):
        running.measure(
            [subject(tmp_path / "one")], [partial(truediv, 1, 0)], miniature.PLAN, jobs=1
        )
    assert "training: ZeroDivisionError" in capsys.readouterr().err


def test_one_run_in_a_folder_and_one_plan(tmp_path: Path) -> None:
    def measure(device: str) -> None:
        running.measure([subject(tmp_path, device=device)], [], miniature.PLAN, jobs=1)

    with (
        running._alone(tmp_path),
        pytest.raises(click.ClickException, match="Another run is measuring"),
    ):
        measure("cpu")
    running._refuse_others(subject(tmp_path), miniature.PLAN)
    with pytest.raises(click.ClickException, match="by another plan, of other items or models"):
        measure("cuda")
