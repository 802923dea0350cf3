"""Models that are on the Hub: their headers are read, and nothing else."""

from pathlib import Path

from checkpoint_edits import rename, without_prefix
from checkpoints import new_model, recipe, save_family, write_recipe
from hub_process import Hub


def test_names_on_the_hub(tmp_path: Path, hub: Hub) -> None:
    save_family(hub.root / "me", num_hidden_layers=3)
    content = recipe(Path("me"))
    content["models"][0]["parameters"]["amplfy_90"] = 2
    path = write_recipe(tmp_path / "recipe.yml", content)
    done = hub.command("check", str(path), cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stdout
    assert "amplify_90" in errors[0]
    # Headers, and no weights.
    size = (hub.root / "me" / "math" / "model.safetensors").stat().st_size
    sent = [line.split() for line in (hub.root / "sent").read_text(encoding="utf-8").splitlines()]
    of_weights = sum(int(number) for number, file in sent if file.endswith(".safetensors"))
    # The client asks for the first 100 kB of each: a header is seldom longer.
    assert 0 < of_weights <= 3 * 100_001 < 3 * size

    content["models"][0]["model"] = "me/nowhere"
    write_recipe(path, content)
    done = hub.command("check", str(path), cwd=tmp_path)
    assert "me/nowhere" in done.stdout


def test_other_names_on_the_hub(tmp_path: Path, hub: Hub) -> None:
    save_family(hub.root / "me", "gpt2")
    rename(hub.root / "me" / "base", without_prefix)
    path = write_recipe(tmp_path / "recipe.yml", recipe(Path("me")))
    done = hub.command("check", str(path), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the merge itself will show whether mergekit knows them" in done.stdout


def test_a_shape_on_the_hub(tmp_path: Path, hub: Hub) -> None:
    save_family(hub.root / "me")
    new_model("llama", 0, hidden_size=40).save_pretrained(hub.root / "me" / "law")
    path = write_recipe(tmp_path / "recipe.yml", recipe(Path("me")))
    done = hub.command("check", str(path), cwd=tmp_path)
    assert done.returncode == 1
    assert "me/law" in done.stdout
    assert "40" in done.stdout
