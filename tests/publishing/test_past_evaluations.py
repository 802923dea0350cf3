"""The evaluations whose scores are published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from checkpoints import recipe
from click.testing import CliRunner
from commands import Merge
from hub_names import NAMES
from hub_process import Hub
from huggingface_hub import ModelCard, parse_eval_result_entries
from search_models import save_search

from dppa_mergekit.cli.main import main
from dppa_mergekit.live.source_model import fingerprint
from dppa_mergekit.publishing.publish import Publishing
from dppa_mergekit.storage.run_record import digest


def evaluated(folder: Path, weights: Path, time: str, **changes: object) -> dict[str, object]:
    """The record of an evaluation of a folder when these weights were in it."""
    scores = {
        "gsm": {"value": 0.5, "error": 0.02, "items": 100},
        "gsm_dev": {"value": 0.625, "error": None, "items": 0},
    }
    base = {"scores": {}, "domain_ratios": {}}
    ratios = {"math": {"value": 83.61, "error": None}}
    tables = {
        "tuned_on": ["gsm_dev"],
        "models": {"base": base, str(folder): {"scores": scores, "domain_ratios": ratios}},
    }
    return {
        "command": "evaluate",
        "time": f"2026-01-01T{time}+00:00",
        "models": ["base", str(folder)],
        "checkpoints": {"base": "0", str(folder): fingerprint(weights, dated=False)},
        "part": "test",
        "tasks": {"limit": None},
        "results": [tables],
        **changes,
    }


def save_record(folder: Path, record: object) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / "dppa_run.json"
    path.write_text(json.dumps({"evaluation.json": record}), encoding="utf-8")


def test_scores_and_how_factors_were_found(merged: Path, hub: Hub) -> None:
    out = merged / "out"
    save_record(merged / "tables", evaluated(out, out, "10:00"))
    (merged / "dppa_run.json").write_text(
        json.dumps({"recipe.yml": {"command": "search", "sha256": digest(merged / "recipe.yml")}}),
        encoding="utf-8",
    )
    found = f"# Found\n\n| domain | model |\n|---|---|\n| math | {merged / 'math'} |\n"
    (merged / "recipe.md").write_text(found, encoding="utf-8")
    options = ("out", "me/merge", "--license", "mit", "--recipe", "recipe.yml", "--dry-run")
    done = hub.publish(merged, *options, *NAMES)
    assert done.returncode == 0, done.stderr
    card = ModelCard((merged / "out" / "README.md").read_text(encoding="utf-8"))
    assert "## How they were found" in card.text
    assert "| math | org/math |" in card.text
    assert "0.500 ± 0.020" in card.text
    assert "gsm_dev\\*" in card.text
    assert "| math   |  83.6 |" in card.text
    values = {each.dataset_name: each.metric_value for each in card.data.eval_results}
    assert values == {"gsm": 0.5, "gsm_dev (tuned on)": 0.625}
    assert "at most the first" not in card.text
    assert str(merged) not in card.content
    # A recipe that was changed by hand was not found so.
    with (merged / "recipe.yml").open("a", encoding="utf-8") as file:
        file.write("# mine\n")
    done = hub.publish(merged, *options, *NAMES)
    assert "recipe.yml has changed since search wrote it" in done.stderr
    assert "How they were found" not in (merged / "out" / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def prepared(merged: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[str, str]]:
    """The card of a folder, and what was said."""

    def prepare(folder: Path = merged / "out") -> tuple[str, str]:
        caplog.clear()
        Publishing(folder, "me/merge", None, license="mit").prepare(dry_run=True)
        return (folder / "README.md").read_text(encoding="utf-8"), caplog.text

    return prepare


BENCHMARKS = {
    "limit": None,
    "num_fewshot": 5,
    "domains": {"math": {"test": {"gsm8k": "exact_match,strict-match", "own": "acc,none"}}},
}


def of_benchmarks(out: Path, time: str, **changes: object) -> dict[str, object]:
    """The record of an evaluation on a benchmark of the Hub's and a task of one's own."""
    scores = {
        "gsm8k": {"value": 0.51236, "error": 0.01, "items": 1319},
        "gsm8k_cot": {"value": 0.6, "error": 0.01, "items": 1319},
        "own": {"value": 0.5, "error": 0.02, "items": 100},
    }
    tables = {
        "tuned_on": [],
        "models": {str(out): {"scores": scores, "domain_ratios": {}}},
    }
    return evaluated(out, out, time, **{"tasks": BENCHMARKS, "results": [tables], **changes})


def test_benchmarks_of_the_hub(merged: Path, hub: Hub) -> None:
    out = merged / "out"
    options = ("out", "me/merge", "--license", "mit")
    save_record(merged / "tables", of_benchmarks(out, "10:00"))
    done = hub.publish(merged, *options, "--dry-run", *NAMES)
    assert ".eval_results/dppa-mergekit.yaml" in done.stdout
    done = hub.publish(merged, *options, *NAMES)
    assert done.returncode == 0, done.stderr
    uploaded = hub.root / "me" / "merge" / ".eval_results" / "dppa-mergekit.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(uploaded.read_text(encoding="utf-8")))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 51.24)
    assert entry.notes == "lm-evaluation-harness, gsm8k, 5-shot, exact_match,strict-match"
    # A task of one's own may have the name of a benchmark.
    (merged / "own").mkdir()
    for name in ("gsm8k", "gsm8k_cot"):
        (merged / "own" / f"{name}.yaml").write_text(f"task: {name}\n", encoding="utf-8")
    named = {**BENCHMARKS, "include_path": str(merged / "own")}
    save_record(merged / "tables", of_benchmarks(out, "10:30", tasks=named))
    done = hub.publish(merged, *options, "--dry-run", *NAMES)
    assert ".eval_results" not in done.stdout
    # Part of a benchmark is no score on it; the file of other scores goes, here and on the Hub.
    limited = {**BENCHMARKS, "limit": 9}
    save_record(merged / "tables", of_benchmarks(out, "11:00", tasks=limited))
    done = hub.publish(merged, *options, *NAMES)
    assert done.returncode == 0, done.stderr
    assert not (out / ".eval_results" / "dppa-mergekit.yaml").exists()
    assert not uploaded.exists()


def test_scores_of_other_weights_are_left_out(
    merged: Path, prepared: Callable[..., tuple[str, str]]
) -> None:
    out, tables = merged / "out", merged / "tables"
    for record, reason in (
        (evaluated(out, merged / "math", "10:00"), "measured other weights"),
        (evaluated(out, out, "10:00", part="dev"), "used the dev tasks"),
        (evaluated(out, out, "10:00", results=[{"tuned_on": [], "models": {}}]), "ended before"),
        (
            {**evaluated(out, out, "10:00"), "checkpoints": None},
            "does not say which weights it measured",
        ),
    ):
        save_record(tables, record)
        card, said = prepared()
        assert "0.500" not in card
        assert f"The evaluation in {tables} {reason}" in said
    # Of evaluations of something else there is nothing to say.
    save_record(tables, evaluated(merged / "law", merged / "law", "10:00"))
    card, said = prepared()
    assert "0.500" not in card
    assert "The evaluation in" not in said


def test_the_last_evaluation_counts_wherever_it_is(
    merged: Path, prepared: Callable[..., tuple[str, str]]
) -> None:
    out, scores = merged / "out", {"models": {}, "tuned_on": []}
    for name, time, value in (("a", "09:00", 0.1), ("b", "11:00", 0.2), ("c", "10:00", 0.3)):
        record = evaluated(out, out, time, tasks={"limit": 4})
        score = {"value": value, "error": None}
        model = {"scores": {"gsm": score}, "domain_ratios": {}}
        save_record(merged / name, {**record, "results": [{**scores, "models": {str(out): model}}]})
    card, said = prepared()
    assert "0.200" in card
    assert "Of each task, at most the first 4 items were used." in card
    assert "gsm (limit 4)" in card
    assert "0.100" not in card
    assert "0.300" not in card
    for name in ("a", "c"):
        assert f"The evaluation in {merged / name} is older than another" in said
    # A copy has the scores of what it is a copy of.
    shutil.copytree(out, merged / "copy")
    out.rename(merged / "moved")
    for name in ("copy", "moved"):
        assert "0.200" in prepared(merged / name)[0]


def test_another_merge_in_the_same_place(tmp_path: Path, merge: Merge) -> None:
    save_search(tmp_path, items=6)
    merge(recipe(tmp_path))
    out = tmp_path / "out"
    options = (f"--tasks={tmp_path / 'tasks.yml'}", f"--output={tmp_path / 'tables'}")
    done = CliRunner().invoke(main, ["evaluate", str(out), *options, "--part=test"])
    assert done.exit_code == 0, done.output
    publishing = Publishing(out, "me/merge", None, license="mit")
    publishing.prepare(dry_run=True)
    assert "## Scores" in (out / "README.md").read_text(encoding="utf-8")
    shutil.rmtree(out)
    merge(recipe(tmp_path, models={"law": {"weight": 0.5}}))
    publishing.prepare(dry_run=True)
    assert "## Scores" not in (out / "README.md").read_text(encoding="utf-8")
