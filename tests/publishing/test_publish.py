"""`mergekit-dppa publish`, against a Hub that is a process on loopback."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from checkpoints import recipe, save_family, tensors_of, unequal
from click.testing import CliRunner
from hub_process import Hub
from huggingface_hub import ModelCard
from search_models import save_search

from dppa_mergekit.cli.main import main
from dppa_mergekit.live.source_model import fingerprint
from dppa_mergekit.publishing.publish import Publishing
from dppa_mergekit.storage.run_record import digest

Merge = Callable[..., dict[str, object]]

LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(sys.argv[1])
model.save_pretrained(sys.argv[2])
"""


def commits(hub: Hub) -> list[str]:
    return [line for line in hub.asked("POST") if "/commit/" in line]


@pytest.fixture
def merged(tmp_path: Path, merge: Merge) -> Path:
    """A folder with a base, math and law, and their merge `out`."""
    save_family(tmp_path)
    merge(recipe(tmp_path))
    return tmp_path


def license_all(folder: Path, *licenses: str) -> None:
    for name, licence in zip(("base", "math", "law"), licenses, strict=True):
        text = f"---\nlicense: {licence}\n---\n# {name}\n"
        (folder / name / "README.md").write_text(text, encoding="utf-8")


NAMES = [f"--name={name}" for name in ("base=org/base", "math=org/math", "law=org/law")]


def test_upload_and_download(merged: Path, hub: Hub) -> None:
    license_all(merged, "mit", "mit", "mit")
    done = hub.publish(merged, "out", "me/merge", "--private", *NAMES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("/me/merge")
    assert "private" in (hub.root / "created").read_text(encoding="utf-8")
    loaded = merged / "loaded"
    done = hub.run("-c", LOAD, "me/merge", str(loaded), cwd=merged)
    assert done.returncode == 0, done.stderr
    assert not unequal(tensors_of(loaded), tensors_of(merged / "out"))
    uploaded = hub.root / "me" / "merge"
    card = ModelCard((uploaded / "README.md").read_text(encoding="utf-8"))
    data = card.data.to_dict()
    assert data["license"] == "mit"
    assert data["base_model"] == ["org/base", "org/math", "org/law"]
    assert data["base_model_relation"] == "merge"
    assert set(data["tags"]) == {"mergekit", "merge", "dppa"}
    assert data["library_name"] == "transformers"
    for name in ("README.md", "mergekit_config.yml"):
        text = (uploaded / name).read_text(encoding="utf-8")
        assert str(merged) not in text
        assert "org/math" in text
    assert "This is a merge of pre-trained language models" in card.text
    assert "2403.02799" in card.text
    assert "[org/law](https://huggingface.co/org/law)" in card.text
    (row,) = [line for line in card.text.splitlines() if line.startswith("| [org/math](")]
    assert sorted(row.split()[3::2]) == ["0.2", "0.6", "1.4", "2.1"]
    assert (uploaded / "density.png").stat().st_size > 1000
    config = yaml.safe_load((uploaded / "mergekit_config.yml").read_text(encoding="utf-8"))
    assert config["models"][0]["model"] == "org/math"
    # What mergekit left is still what it left.
    assert str(merged) in (merged / "out" / "mergekit_config.yml").read_text(encoding="utf-8")


def test_twice_changes_nothing(merged: Path, hub: Hub) -> None:
    def files() -> dict[str, bytes]:
        folder = hub.root / "me" / "merge"
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    options = ("out", "me/merge", "--license", "mit", *NAMES)
    assert hub.publish(merged, *options).returncode == 0
    first, puts = files(), hub.asked("PUT")
    assert len(commits(hub)) == 1
    done = hub.publish(merged, *options)
    assert done.returncode == 0, done.stderr
    assert files() == first
    assert hub.asked("PUT") == puts
    assert len(commits(hub)) == 1


def test_no_old_weights_are_left(merged: Path, hub: Hub, merge: Merge) -> None:
    options = ("out", "me/merge", "--license", "mit", *NAMES)
    assert hub.publish(merged, *options).returncode == 0
    uploaded = hub.root / "me" / "merge"
    assert (uploaded / "model.safetensors").exists()
    others = ("notes.md", "gguf/model.gguf", "adapter_model.safetensors", "model.fp16.safetensors")
    others += ("models/q8/model.safetensors", ".gitattributes")
    for name in others:
        (uploaded / name).parent.mkdir(parents=True, exist_ok=True)
        (uploaded / name).write_text("mine", encoding="utf-8")
    shutil.rmtree(merged / "out")
    tensors = merge(recipe(merged), "--out-shard-size", "50000")
    done = hub.publish(merged, *options)
    assert done.returncode == 0, done.stderr
    weights = {path.name for path in (merged / "out").glob("model*")}
    assert len(weights) > 2
    assert {path.name for path in uploaded.glob("model*") if path.is_file()} - {*others} == weights
    assert not unequal(tensors_of(merged / "out"), tensors)
    assert all((uploaded / name).exists() for name in others)


def test_a_failed_upload_can_be_repeated(merged: Path, hub: Hub) -> None:
    (hub.root / "broken").touch()
    options = ("out", "me/merge", "--license", "mit", *NAMES)
    done = hub.publish(merged, *options)
    assert done.returncode == 1
    assert "the same command tries again" in done.stderr
    assert "Traceback" not in done.stderr
    (hub.root / "broken").unlink()
    assert hub.publish(merged, *options).returncode == 0


def test_dry_run_asks_nothing_of_the_hub(merged: Path, hub: Hub) -> None:
    license_all(merged, "mit", "mit", "mit")
    done = hub.publish(merged, "out", "me/merge", "--dry-run", token="")
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in done.stdout
    assert "README.md" in done.stdout
    assert "dppa_run.json" not in done.stdout
    assert not (hub.root / "requests").exists()
    card = (merged / "out" / "README.md").read_text(encoding="utf-8")
    assert str(merged) not in card
    assert f"--name {merged / 'math'}=owner/name" in done.stderr


@pytest.mark.parametrize(
    ("licenses", "options", "sentence"),
    [
        (("mit", "mit", "llama2"), (), "name the merge's with --license"),
        (("mit", "mit", "mit"), ("--name=math",), "allowed is MODEL=HUB_NAME"),
        (("mit", "mit", "mit"), ("--name=math=a b",), "a b is no name on the Hub"),
    ],
)
def test_mistakes(
    merged: Path, hub: Hub, licenses: tuple[str, ...], options: tuple[str, ...], sentence: str
) -> None:
    license_all(merged, *licenses)
    done = hub.publish(merged, "out", "me/merge", *options)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert not (hub.root / "me").exists()


def test_no_token(merged: Path, hub: Hub) -> None:
    before = (merged / "out" / "README.md").read_bytes()
    (merged / "out" / "config.json").write_text("", encoding="utf-8")
    done = hub.publish(merged, "out", "me/merge", token="")
    assert done.returncode == 1
    # It takes no time, so it comes before all else that may be wrong.
    assert "hf auth login" in done.stderr
    assert (merged / "out" / "README.md").read_bytes() == before


def test_no_network(merged: Path, hub: Hub) -> None:
    hub.environment = {**hub.environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = hub.publish(merged, "out", "me/merge", "--license", "mit")
    assert done.returncode == 1
    assert "the same command tries again" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_not_whole(merged: Path, hub: Hub) -> None:
    (merged / "out" / "config.json").write_text("", encoding="utf-8")
    done = hub.publish(merged, "out", "me/merge", "--license", "mit")
    assert done.returncode == 1
    assert "config.json" in done.stderr


def test_another_recipe(merged: Path, hub: Hub) -> None:
    content = recipe(merged)
    content["models"][0]["parameters"]["weight"] = 0.9
    (merged / "other.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    done = hub.publish(merged, "out", "me/merge", "--license", "mit", "--recipe", "other.yml")
    assert done.returncode == 1
    assert "was not merged from other.yml" in done.stderr
    (merged / "out" / "mergekit_config.yml").unlink()
    done = hub.publish(merged, "out", "me/merge", "--license", "mit", "--recipe", "other.yml")
    assert done.returncode == 1
    assert "out has no mergekit_config.yml" in done.stderr
    assert "merge again without --no-write-model-card" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_of_no_model(merged: Path, hub: Hub) -> None:
    done = hub.publish(merged, "out", "me/merge", "--license", "mit", "--name=mth=org/math")
    assert done.returncode == 1
    assert "--name mth: the recipe has no such model; it has" in done.stderr


def test_recipes_are_uploaded_without_paths(merged: Path, hub: Hub) -> None:
    left = merged / "out" / "mergekit_config.yml"
    content = yaml.safe_load(left.read_text(encoding="utf-8"))
    law = str(merged / "elsewhere" / ".." / "law")
    (merged / "elsewhere").mkdir()
    content["tokenizer"] = {
        "source": "base",
        "tokens": {
            "w1": {"source": {"kind": "model_token", "model": "./math", "token": "w1"}},
            "w2": {"source": {"model": {"path": law, "revision": None}}},
            "w3": {"source": str(merged / "math") + "/"},
        },
    }
    text = yaml.safe_dump(content, sort_keys=False)
    left.write_text(text, encoding="utf-8")
    card = merged / "out" / "README.md"
    card.write_text(f"{card.read_text(encoding='utf-8')}\n```yaml\n{text}```\n", encoding="utf-8")
    for name in ("evaluation.json", "evaluation.md", "evaluation.html", "analysis.json"):
        (merged / "out" / name).write_text(str(merged), encoding="utf-8")
    names = ("--name=./base=org/base", f"--name={merged / 'math'}=org/math")
    done = hub.publish(merged, "out", "me/merge", "--license", "mit", *names)
    assert done.returncode == 0, done.stderr
    uploaded = hub.root / "me" / "merge"
    found = yaml.safe_load((uploaded / "mergekit_config.yml").read_text(encoding="utf-8"))
    assert found["base_model"] == "org/base"
    assert [each["model"] for each in found["models"]] == ["org/math", "law"]
    assert found["tokenizer"] == {
        "source": "base",
        "tokens": {
            "w1": {"source": {"kind": "model_token", "model": "org/math", "token": "w1"}},
            "w2": {"source": {"model": {"path": "law", "revision": None}}},
            "w3": {"source": "org/math"},
        },
    }
    assert [path.name for path in uploaded.iterdir() if path.name.startswith("evaluation")] == []
    for path in uploaded.iterdir():
        assert str(merged).encode() not in path.read_bytes(), path
    # One model that is spelled in two ways is told once.
    assert done.stderr.count("is a folder of this machine") == 1


def test_a_path_that_has_no_name_is_refused(merged: Path, hub: Hub) -> None:
    left = merged / "out" / "mergekit_config.yml"
    content = yaml.safe_load(left.read_text(encoding="utf-8"))
    model = f"org/math+{merged / 'law'}"
    content["tokenizer_source"] = model
    left.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = hub.publish(merged, "out", "me/merge", "--license", "mit")
    assert done.returncode == 1
    assert f"The recipe would be uploaded with {model}, a path of this machine" in done.stderr
    assert not (hub.root / "requests").exists()
    names = {model: "org/mine"}
    Publishing(merged / "out", "me/merge", None, names, "mit").prepare(dry_run=True)
    card = (merged / "out" / "README.md").read_text(encoding="utf-8")
    assert "tokenizer_source: org/mine" in card


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
    assert "recipe.yml was changed since search wrote it" in done.stderr
    assert "How they were found" not in (merged / "out" / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def prepared(merged: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., tuple[str, str]]:
    """The card of a folder, and what was said."""

    def prepare(folder: Path = merged / "out") -> tuple[str, str]:
        caplog.clear()
        Publishing(folder, "me/merge", None, license="mit").prepare(dry_run=True)
        return (folder / "README.md").read_text(encoding="utf-8"), caplog.text

    return prepare


def test_scores_of_other_weights_are_left_out(
    merged: Path, prepared: Callable[..., tuple[str, str]]
) -> None:
    out, tables = merged / "out", merged / "tables"
    for record, reason in (
        (evaluated(out, merged / "math", "10:00"), "is of other weights"),
        (evaluated(out, out, "10:00", part="dev"), "is of the dev tasks"),
        (evaluated(out, out, "10:00", results=[{"tuned_on": [], "models": {}}]), "ended before"),
        (
            {**evaluated(out, out, "10:00"), "checkpoints": None},
            "does not say of which weights it is",
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
