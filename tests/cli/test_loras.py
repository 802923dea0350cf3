"""A LoRA in the commands that load models: results are those of the model that contains it."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from checkpoints import save_lora, tokenizer
from click.testing import CliRunner
from mergekit.io.tasks import LoaderCache
from search_models import save_search

from dppa_mergekit.cli.main import main


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and tasks of a search, a LoRA on the base, and the base with the LoRA in it."""
    folder = save_search(tmp_path_factory.mktemp("loras"), items=16)
    save_lora(folder)
    tokenizer().save_pretrained(folder / "whole")
    for name in ("math", "law"):
        lines = [{"prompt": f"w{i} w{i + 3}", "completion": f" w{i + 1}"} for i in range(6)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


SEARCH = ("--tasks={folder}/tasks.yml", "--output={folder}/out.yml", "--max-evaluations=3")
PROMPTS = ("--prompts={folder}/{name}.jsonl", "--prompts={saved}/law.jsonl")

COMMANDS = {
    "search": ("search", "{folder}/recipe.yml", *SEARCH, "--strategy=paper"),
    "weights": ("search", "{folder}/recipe.yml", *SEARCH, "--tune=weights"),
    "adamerge": (
        *("adamerge", "{folder}/recipe.yml", *PROMPTS, "--output={folder}/out.yml"),
        *("--steps=2", "--every=1", "--batch-size=2"),
    ),
    "evaluate": (
        *("evaluate", "--tasks={folder}/tasks.yml", "--recipe={folder}/recipe.yml"),
        "--output={folder}/out",
    ),
    "activations": (
        *("activations", "{folder}/recipe.yml", *PROMPTS, "--output={folder}/out.yml"),
        "--rank=4",
    ),
}


def run(saved: Path, folder: Path, model: str, command: Sequence[str]) -> str:
    """The results of a command: all that it writes into its output and the terminal."""
    folder.mkdir()
    recipe = yaml.safe_load((saved / "recipe.yml").read_text(encoding="utf-8"))
    recipe["models"][0]["model"] = model
    tasks = yaml.safe_load((saved / "tasks.yml").read_text(encoding="utf-8"))
    tasks["domains"]["math"]["model"] = model
    tasks["include_path"] = str(saved / "tasks")
    for name, content in (("recipe.yml", recipe), ("tasks.yml", tasks)):
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    # A prompts file has the name of the model's folder, or of the LoRA's.
    name = Path(model).name
    shutil.copy(saved / "math.jsonl", folder / f"{name}.jsonl")
    LoaderCache.loaders.clear()
    arguments = [argument.format(saved=saved, folder=folder, name=name) for argument in command]
    done = CliRunner().invoke(main, ["-q", *arguments])
    assert done.exit_code == 0, done.output
    assert not list(folder.glob(".dppa-*"))
    tuned = folder / "out.yml"
    written = tuned.read_text(encoding="utf-8") if tuned.exists() else ""
    text = done.stdout + written
    for found, put in ((model, "MODEL"), (str(folder), "FOLDER"), (name, "NAME")):
        text = text.replace(found, put)
    # Widths of columns, and how long it took.
    return re.sub(r"[ -]+|, \d+ s\b", " ", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_results_are_those_of_the_merged_model(command: str, saved: Path, tmp_path: Path) -> None:
    lora = f"{saved / 'base'}+{saved / 'adapter'}"
    found, wanted = (
        run(saved, tmp_path / name, model, COMMANDS[command])
        for name, model in (("lora", lora), ("whole", str(saved / "whole")))
    )
    assert found == wanted
