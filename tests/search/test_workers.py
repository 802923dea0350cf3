"""A search on several processes finds what it finds on one, and survives the loss of a worker."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import landscape
import pytest
import ray
from click.testing import CliRunner
from landscape import Landscape, hill
from ray import cloudpickle
from search_models import save_search

from dppa_mergekit.cli.main import main
from dppa_mergekit.errors import DppaError
from dppa_mergekit.scoring.ratios import Items, Scores
from dppa_mergekit.search.candidate_search import CandidateSearch
from dppa_mergekit.search.options import Options
from dppa_mergekit.search.workers import RESTARTS, Cluster, connect, distribute


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_search(tmp_path_factory.mktemp("search"))


def searched(saved: Path, folder: Path, *options: str) -> tuple[str, list[dict]]:
    """The tuned recipe, and the journal without times."""
    folder.mkdir()
    output = folder / "tuned.yml"
    arguments = [str(saved / "recipe.yml"), f"--tasks={saved / 'tasks.yml'}", f"--output={output}"]
    result = CliRunner().invoke(main, ["search", *arguments, *options])
    assert result.exit_code == 0, result.output
    lines = (folder / "tuned.yml.journal.jsonl").read_text(encoding="utf-8").splitlines()
    header, *entries = ({**json.loads(line), "seconds": 0} for line in lines)
    return output.read_text(encoding="utf-8"), [
        header,
        *sorted(entries, key=lambda entry: (entry["domain"], entry["candidate"], entry["fold"])),
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [("--max-evaluations=6",), ("--tune=weights", "--max-evaluations=5")],
    ids=["factors", "weights"],
)
def test_two_workers_find_what_one_process_finds(
    options: tuple[str, ...], saved: Path, tmp_path: Path
) -> None:
    alone = searched(saved, tmp_path / "alone", *options)
    shared = searched(saved, tmp_path / "shared", *options, "--workers=2")
    assert shared == alone


def test_more_workers_than_gpus(saved: Path, tmp_path: Path) -> None:
    arguments = [str(saved / "recipe.yml"), f"--tasks={saved / 'tasks.yml'}"]
    options = [f"--output={tmp_path / 'tuned.yml'}", "--workers=99", "--device=cuda"]
    result = CliRunner().invoke(main, ["search", *arguments, *options])
    assert result.exit_code == 1
    assert "99 workers on cuda need 99 GPUs, one each, and this machine has" in result.stderr


class Fragile(Landscape):
    """Its process ends in the first trials of some factors, as often as a worker may be lost."""

    def __init__(self, folder: Path) -> None:
        super().__init__(hill(1.7, 1.3))
        self.folder = folder

    def score(self, settings: Mapping[str, float], items: Items) -> Scores:
        mark = self.folder / f"{settings}"
        lost = len(list(self.folder.iterdir()))
        if settings["amplify_90"] == 1.4 and not mark.exists() and lost < RESTARTS:
            mark.touch()
            os._exit(1)
        return super().score(settings, items)


class Refusing(Landscape):
    """It has no scores."""

    def score(self, settings: Mapping[str, float], items: Items) -> Scores:
        raise DppaError("The disk is full.")


@pytest.fixture
def cluster() -> Iterator[None]:
    # Workers do not find the modules of the tests by name.
    for module in (landscape, sys.modules[__name__]):
        cloudpickle.register_pickle_by_value(module)
    with connect(Cluster(2)):
        yield


@pytest.mark.usefixtures("cluster")
def test_a_lost_workers_trial_is_made_again(tmp_path: Path) -> None:
    items = {"a": 400}
    alone = CandidateSearch("math", "./math", items, Landscape(hill(1.7, 1.3)), Options()).run()
    with distribute(lambda _: Fragile(tmp_path), 2, 2, gpu=False) as trials_of:
        shared = CandidateSearch("math", "./math", items, trials_of("math"), Options()).run()
    assert list(tmp_path.iterdir())
    assert (shared.factors, shared.after) == (alone.factors, alone.after)


@pytest.mark.usefixtures("cluster")
def test_what_ends_a_trial_is_said_as_without_workers() -> None:
    with (
        distribute(lambda _: Refusing(hill(1.0, 1.0)), 1, 2, gpu=False) as trials_of,
        pytest.raises(DppaError, match=r"^The disk is full\.$"),
    ):
        CandidateSearch("math", "./math", {"a": 100}, trials_of("math"), Options()).run()


def test_an_address_where_no_cluster_is() -> None:
    for address in ("localhost:1", "ray://[::1]:1", f"{'a' * 70}:1"):
        with pytest.raises(DppaError, match="No Ray cluster at"), connect(Cluster(1, address)):
            pass


def test_a_cluster_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**given: object) -> None:
        raise ConnectionError("No port is free.")

    monkeypatch.setattr(ray, "init", fail)
    sentence = r"^Ray does not start on this machine \(No port is free\)\.$"
    with pytest.raises(DppaError, match=sentence), connect(Cluster(1)):
        pass
