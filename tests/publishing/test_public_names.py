"""No path of this machine is uploaded."""

from pathlib import Path

import yaml
from hub_process import Hub

from dppa_mergekit.publishing.public_names import public_files
from dppa_mergekit.publishing.publish import Publishing


def test_a_name_of_no_model(merged: Path, hub: Hub) -> None:
    done = hub.publish(merged, "out", "me/merge", "--license", "mit", "--name=mth=org/math")
    assert done.returncode == 1
    assert "--name mth: the recipe has no such model; it has" in done.stderr


def test_files_of_one_name_stay_apart() -> None:
    given = ("a/m.safetensors", "b/m.safetensors", "c/m.safetensors", "a/n.safetensors")
    models = [
        {"model": str(number), "parameters": {"activations": path}}
        for number, path in enumerate(given)
    ]
    names = public_files({"models": [*models, models[0]]}, "activations")
    shown = ("m", "m-2", "m-3", "n")
    assert names == {
        path: f"activations/{name}.safetensors" for path, name in zip(given, shown, strict=True)
    }


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
    assert done.stderr.count("is a local folder") == 1


def test_a_path_that_has_no_name_is_refused(merged: Path, hub: Hub) -> None:
    left = merged / "out" / "mergekit_config.yml"
    content = yaml.safe_load(left.read_text(encoding="utf-8"))
    model = f"org/math+{merged / 'law'}"
    content["tokenizer_source"] = model
    left.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = hub.publish(merged, "out", "me/merge", "--license", "mit")
    assert done.returncode == 1
    assert f"The uploaded recipe would contain {model}, a local path" in done.stderr
    assert not (hub.root / "requests").exists()
    names = {model: "org/mine"}
    Publishing(merged / "out", "me/merge", None, names, "mit").prepare(dry_run=True)
    card = (merged / "out" / "README.md").read_text(encoding="utf-8")
    assert "tokenizer_source: org/mine" in card
