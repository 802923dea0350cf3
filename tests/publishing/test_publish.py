"""`mergekit-dppa publish`, against a Hub that is a process on loopback."""

import shutil
import tempfile
from pathlib import Path

import pytest
import yaml
from activation_files import draw_moments, write_moments
from checkpoints import recipe, tensors_of, unequal
from commands import Merge
from hub_names import NAMES
from hub_process import Hub
from huggingface_hub import ModelCard

from dppa_mergekit.publishing.publish import Publishing

LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(sys.argv[1])
model.save_pretrained(sys.argv[2])
"""


def commits(hub: Hub) -> list[str]:
    return [line for line in hub.asked("POST") if "/commit/" in line]


def license_all(folder: Path, *licenses: str) -> None:
    for name, licence in zip(("base", "math", "law"), licenses, strict=True):
        text = f"---\nlicense: {licence}\n---\n# {name}\n"
        (folder / name / "README.md").write_text(text, encoding="utf-8")


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
    assert "The merge method is `dppa` (DPPA) of `dppa-mergekit`" in card.text
    assert "Zhu, Yaochen" in card.text
    assert card.text.count("merge_method:") == 1
    assert "[org/law](https://huggingface.co/org/law)" in card.text
    (row,) = [line for line in card.text.splitlines() if line.startswith("| [org/math](")]
    assert sorted(row.split()[3::2]) == ["0.2", "0.6", "1.4", "2.1"]
    assert (uploaded / "density.png").stat().st_size > 1000
    config = yaml.safe_load((uploaded / "mergekit_config.yml").read_text(encoding="utf-8"))
    assert config["models"][0]["model"] == "org/math"
    listed = hub.publish(merged, "out", "me/merge", "--dry-run", *NAMES).stdout
    size = (uploaded / "mergekit_config.yml").stat().st_size
    assert f" {size:,}  mergekit_config.yml" in listed
    # What mergekit left is still what it left.
    assert str(merged) in (merged / "out" / "mergekit_config.yml").read_text(encoding="utf-8")


def test_corrected_names(merged: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A later run with other names leaves nothing of the earlier one."""
    card = merged / "out" / "README.md"

    def prepare(*owners: str) -> str:
        names = {
            str(merged / name): f"{owner}/{name}"
            for name, owner in zip(("base", "math", "law"), owners, strict=True)
        }
        Publishing(merged / "out", "me/merge", None, names, "mit").prepare(dry_run=True)
        return card.read_text(encoding="utf-8")

    first = prepare("org", "org", "org")
    wrong = prepare("gro", "org", "org")
    assert "gro/base" in wrong
    assert "org/base" not in wrong
    assert prepare("org", "org", "org") == first
    # What a person adds stays.
    card.write_text(first.replace("# out", "# Ours"), encoding="utf-8")
    assert "# Ours" in prepare("org", "org", "org")
    assert "was edited" not in caplog.text
    card.write_text(card.read_text(encoding="utf-8") + "\nMore.\n", encoding="utf-8")
    prepare("gro", "org", "org")
    assert "was edited after a run with other names" in caplog.text


def test_the_name_of_a_folder_with_a_slash(merged: Path) -> None:
    card = merged / "out" / "README.md"
    text = card.read_text(encoding="utf-8")
    assert "# out\n" in text
    card.write_text(text.replace("# out\n", "# Untitled Model (1)\n"), encoding="utf-8")
    Publishing(merged / "out", "me/merge", None, {}, "mit").prepare(dry_run=True)
    assert "# merge\n" in card.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "block",
    ["a: [", "a: 1\n---\nb: 2", "date: 2024-02-30"],
    ids=["broken", "several documents", "no such day"],
)
def test_other_yaml_in_a_card_is_kept(merged: Path, block: str) -> None:
    card = merged / "out" / "README.md"
    title, shown = "# out\n", f"\n```yaml\n{block}\n```\n"
    text = card.read_text(encoding="utf-8")
    assert title in text
    card.write_text(text.replace(title, title + shown), encoding="utf-8")
    names = {str(merged / name): f"org/{name}" for name in ("base", "math", "law")}
    Publishing(merged / "out", "me/merge", None, names, "mit").prepare(dry_run=True)
    completed = card.read_text(encoding="utf-8")
    assert shown in completed
    assert completed.count("merge_method:") == 1


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


def test_nothing_is_written_beside_the_folder(
    merged: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder = tempfile.mkdtemp

    def refuse(suffix: str, prefix: str, folder: Path) -> str:
        if Path(folder) == merged:
            raise PermissionError(13, "Permission denied", str(folder))
        return make_folder(suffix, prefix, folder)

    monkeypatch.chdir(merged)
    beside = set(merged.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "mkdtemp", refuse)
        done = hub.publish(merged, str(merged / "out"), "me/merge", "--license", "mit", *NAMES)
    assert done.returncode == 0, done.stderr
    assert not unequal(tensors_of(hub.root / "me" / "merge"), tensors_of(merged / "out"))
    assert set(merged.iterdir()) - beside <= {merged / "home"}
    assert not list(merged.glob("out/.dppa-*"))


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


@pytest.fixture
def by_inputs(merged: Path, merge: Merge) -> Path:
    """The same with a merge by inputs, whose activations lie beside the models."""
    shutil.rmtree(merged / "out")
    models = {
        model: {
            "activations": write_moments(
                merged / f"{model}.safetensors", merged, model, draw_moments(merged, model, 0)
            )
        }
        for model in ("math", "law")
    }
    merge(recipe(merged, "dppa_regmean", models))
    return merged


@pytest.mark.parametrize("uploaded", [False, True])
def test_activations(uploaded: bool, by_inputs: Path, hub: Hub) -> None:
    options = ["out", "me/merge", "--license", "mit", *NAMES]
    asked = ["--with-activations"] if uploaded else []
    dry = hub.publish(by_inputs, *options, *asked, "--dry-run")
    assert ("activations/math.safetensors" in dry.stdout) == uploaded
    done = hub.publish(by_inputs, *options, *asked)
    assert done.returncode == 0, done.stderr
    folder = hub.root / "me" / "merge"
    assert (folder / "activations" / "math.safetensors").exists() == uploaded
    if uploaded:
        raw = (folder / "activations" / "math.safetensors").read_bytes()
        assert str(by_inputs).encode() not in raw
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "## Inputs that were observed" in card
    (row,) = [line for line in card.splitlines() if line.startswith("| [org/math](")]
    assert row.split()[3::2] == ["1", "0", "10", "32"]
    config = yaml.safe_load((folder / "mergekit_config.yml").read_text(encoding="utf-8"))
    shown = "activations/math.safetensors" if uploaded else "math.safetensors"
    assert config["models"][0]["parameters"]["activations"] == shown
    assert str(by_inputs) not in card


def test_a_failed_upload_can_be_repeated(merged: Path, hub: Hub) -> None:
    (hub.root / "broken").touch()
    options = ("out", "me/merge", "--license", "mit", *NAMES)
    done = hub.publish(merged, *options)
    assert done.returncode == 1
    assert "run the same command again to retry" in done.stderr
    assert "Traceback" not in done.stderr
    (hub.root / "broken").unlink()
    assert hub.publish(merged, *options).returncode == 0


def test_dry_run_asks_nothing_of_the_hub(merged: Path, hub: Hub) -> None:
    license_all(merged, "mit", "mit", "mit")
    (merged / "out" / "dppa_run.json").write_text("{}", encoding="utf-8")
    stray = merged / "out" / "model-00002-of-00003.safetensors"
    shutil.copy(merged / "law" / "model.safetensors", stray)
    done = hub.publish(merged, "out", "me/merge", "--dry-run", token="")
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in done.stdout
    assert "README.md" in done.stdout
    assert "dppa_run.json" not in done.stdout
    assert stray.name not in done.stdout
    assert not (hub.root / "requests").exists()
    card = (merged / "out" / "README.md").read_text(encoding="utf-8")
    assert str(merged) not in card
    assert f"--name {merged / 'math'}=owner/name" in done.stderr


@pytest.mark.parametrize(
    ("licenses", "options", "sentence"),
    [
        (("mit", "mit", "llama2"), (), "set the license of the merge with --license"),
        (("mit", "mit", "mit"), ("--name=math",), "allowed is MODEL=HUB_NAME"),
        (("mit", "mit", "mit"), ("--name=math=a b",), "a b is not a valid name on the Hub"),
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
    assert "run the same command again to retry" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_is_not_whole(merged: Path, hub: Hub) -> None:
    (merged / "out" / "config.json").write_text("", encoding="utf-8")
    done = hub.publish(merged, "out", "me/merge", "--license", "mit")
    assert done.returncode == 1
    assert "config.json" in done.stderr


def test_a_folder_that_is_not_one_merge(merged: Path, hub: Hub) -> None:
    shutil.copy(merged / "law" / "model.safetensors", merged / "out" / "model.safetensors")
    done = hub.publish(merged, "out", "me/merge", "--license", "mit", *NAMES)
    assert done.returncode == 1
    assert "its recipe gives other bytes for 1 of 1 tensor" in done.stderr
    assert not (hub.root / "me" / "merge").exists()


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
