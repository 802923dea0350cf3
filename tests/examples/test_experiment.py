"""How an experiment runs its commands, reports their failures, and resumes."""

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
from command_log import run_once
from experiment import Experiment
from plan import Plain, Subject

from dppa_mergekit.cli import main as cli


def subject(folder: Path, name: str = "one", made: Plain | None = None) -> Subject:
    return Subject(
        name, folder, "./base", miniature.make_tasks(miniature.SMOKE.tasks, "."), {}, made or {}
    )


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The arguments given to a command that replaces ours; it fails on some recipes."""
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


def test_a_command_ends_once_for_the_same_files(ran: list[tuple[str, ...]]) -> None:
    asked = ("search", "recipe.yml", "--output", "tuned.yml")
    took = run_once("one", *asked)
    assert run_once("one", *asked) == pytest.approx(took, abs=0.5)
    assert ran == [asked]
    run_once("one", "search", "recipe.yml", "--output", "other.yml")
    assert len(ran) == 2
    # It runs again when a recipe has changed, and when its result was deleted.
    Path("recipe.yml").write_text("weight: 2\n")
    run_once("one", *asked)
    assert len(ran) == 3
    Path("tuned.yml").unlink()
    run_once("one", *asked)
    assert len(ran) == 4
    # The existing result is that of the last run; the journal of another recipe is of no use.
    Path("tuned.yml.journal.jsonl").write_text("{}")
    Path("recipe.yml").write_text("weight: 1\n")
    run_once("one", *asked)
    assert len(ran) == 5
    assert not Path("tuned.yml.journal.jsonl").exists()
    lines = Path("commands.txt").read_text().splitlines()
    assert [line.split("  # ")[0] for line in lines] == [
        f"mergekit-dppa {' '.join(arguments)}" for arguments in ran
    ]


def test_a_command_that_fails_is_named_and_runs_again(ran: list[tuple[str, ...]]) -> None:
    for _ in range(2):
        with pytest.raises(click.ClickException) as raised:
            run_once("one", "search", "fail.yml", "--output", "tuned.yml")
        message = "mergekit-dppa search fail.yml --output tuned.yml: KeyError('density')"
        assert raised.value.message == message
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
    part = partial(run_once, "one", "search", "stop.yml", "--output", "tuned.yml")
    with pytest.raises(BrokenProcessPool, match="130"):
        running._work(partial(one.run, part))
    assert not Path("commands.txt").exists()


def test_failures_are_reported_and_named(capsys: pytest.CaptureFixture[str]) -> None:
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
    assert running._await_all(begun) == {"bad", "worse"}
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "bad: search: no tasks.",
        "worse: KeyError('density')",
    ]
    killed: Future[None] = Future()
    killed.set_exception(BrokenProcessPool())
    with pytest.raises(click.ClickException, match="A process was killed"):
        running._await_all({killed: "good"})


def test_a_training_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.ClickException, match="Not all models are trained"):
        running.measure(
            [subject(tmp_path / "one")], [partial(truediv, 1, 0)], miniature.PLAN, jobs=1
        )
    assert "training: ZeroDivisionError" in capsys.readouterr().err


def test_one_run_in_a_folder_and_one_set_of_models(tmp_path: Path) -> None:
    def measure(seed: int) -> None:
        running.measure([subject(tmp_path, made={"seed": seed})], [], miniature.PLAN, jobs=1)

    with (
        running._lock(tmp_path),
        pytest.raises(click.ClickException, match="Another run is measuring"),
    ):
        measure(0)
    running._check_made(subject(tmp_path, made={"seed": 0}))
    with pytest.raises(click.ClickException, match="measurements of other models or items"):
        measure(1)
