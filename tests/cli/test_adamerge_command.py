"""`mergekit-dppa adamerge`: what it writes, how it goes on, and what it refuses."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from activation_files import draw_moments, write_moments
from checkpoints import recipe, save_family, tensors_of, write_recipe
from click.testing import CliRunner, Result
from mergekit.io.tasks import LoaderCache
from mergekit.scripts.run_yaml import main as mergekit_yaml
from search_models import save_search

from dppa_mergekit.cli.main import main
from dppa_mergekit.recipes.recipe import Recipe

Adamerge = Callable[..., Result]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_search(tmp_path_factory.mktemp("adamerge"))
    for name in ("math", "law"):
        lines = [{"prompt": f"w{i} w{i + 3}", "completion": f" w{i + 1}"} for i in range(9)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        (folder / f"{name}.txt").write_text("w1 w2\n\nw3 w4\nw5\n", encoding="utf-8")
    return folder


@pytest.fixture
def adamerge(saved: Path, tmp_path: Path) -> Adamerge:
    """adamerge(*options) of the saved recipe, to tmp_path/tuned.yml."""

    def run(*options: str, recipe: Path = saved / "recipe.yml") -> Result:
        LoaderCache.loaders.clear()
        arguments = ["adamerge", str(recipe), f"--output={tmp_path / 'tuned.yml'}", *options]
        return CliRunner().invoke(main, arguments)

    return run


def prompts(saved: Path, suffix: str = ".jsonl") -> list[str]:
    return [f"--prompts={saved / name}{suffix}" for name in ("math", "law")]


SHORT = ("--steps=4", "--every=2", "--batch-size=4", "--lr=0.03")


@pytest.mark.parametrize("objective", ["distill", "hidden", "entropy", "loss"])
def test_objectives(objective: str, adamerge: Adamerge, saved: Path, tmp_path: Path) -> None:
    done = adamerge(*prompts(saved), f"--objective={objective}", *SHORT, "--html")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "tuned.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 1
    assert "weight 0.600 -&gt; " in page
    assert f"{saved / 'math'}: weight 0.600 -> " in done.stdout
    assert "the recipe with these weights" in done.stdout
    text = (tmp_path / "tuned.yml").read_text(encoding="utf-8")
    assert text.startswith("# Weights by mergekit-dppa adamerge ")
    assert f"objective {objective}, granularity linear, after 4 of 4 steps" in text
    before = yaml.safe_load((saved / "recipe.yml").read_text(encoding="utf-8"))
    after = yaml.safe_load((tmp_path / "tuned.yml").read_text(encoding="utf-8"))
    for old, new in zip(before["models"], after["models"], strict=True):
        filters = [entry.get("filter") for entry in new["parameters"].pop("weight")]
        assert filters.pop() is None
        # Three blocks of seven linears.
        assert len(filters) == len(set(filters)) == 21
        assert "model.layers.2.mlp.down_proj.weight" in filters
        del old["parameters"]["weight"]
    assert after == before
    assert (tmp_path / "tuned.png").stat().st_size > 10000
    assert f"objective {objective}" in (tmp_path / "tuned.md").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    assert record["command"] == "adamerge"
    assert record["results"][0] == {"step": 4, "steps": 4}
    merged = CliRunner().invoke(
        mergekit_yaml, [str(tmp_path / "tuned.yml"), str(tmp_path / "merged")]
    )
    assert merged.exit_code == 0, merged.output
    assert tensors_of(tmp_path / "merged")


def test_a_text_file_and_one_weight_each(adamerge: Adamerge, saved: Path, tmp_path: Path) -> None:
    done = adamerge(*prompts(saved, ".txt"), "--granularity=model", *SHORT)
    assert done.exit_code == 0, done.output
    after = Recipe.read(tmp_path / "tuned.yml").weights()
    assert all(0 <= weight <= 1 for weight in after.values())
    assert list(after.values()) != [0.6, 0.5]


def test_partitions_of_linears(adamerge: Adamerge, saved: Path, tmp_path: Path) -> None:
    done = adamerge(*prompts(saved), "--granularity=partition", "--objective=hidden", *SHORT)
    assert done.exit_code == 0, done.output
    assert f"{saved / 'law'}: amplify_90 1.000 -> " in done.stdout
    assert "the recipe with these weights and factors" in done.stdout
    text = (tmp_path / "tuned.yml").read_text(encoding="utf-8")
    assert text.startswith("# Weights and factors by mergekit-dppa adamerge ")
    assert "- {filter: model.layers.0.mlp.up_proj.weight, value: 0." in text
    assert max(map(len, text.splitlines())) <= 100 + len(str(saved))
    merged = CliRunner().invoke(
        mergekit_yaml, [str(tmp_path / "tuned.yml"), str(tmp_path / "merged")]
    )
    assert merged.exit_code == 0, merged.output
    checked = CliRunner().invoke(main, ["check", str(tmp_path / "tuned.yml")])
    assert "no errors, no warnings" in checked.output, checked.output
    (tmp_path / "tuned.yml.journal.jsonl").unlink()
    dp = write_recipe(tmp_path / "dp.yml", recipe(saved, "dp", {"math": {"weight": 1.0}}))
    refused(
        adamerge(*prompts(saved), "--granularity=partition", recipe=dp),
        "granularity is 'partition'; allowed for dp are model, block, linear.",
    )


def test_factors_of_a_merge_by_inputs(adamerge: Adamerge, saved: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((saved / "recipe.yml").read_text(encoding="utf-8"))
    content["merge_method"] = "dppa_regmean"
    for entry in content["models"]:
        del entry["parameters"]["weight"]
    by_inputs = write_recipe(tmp_path / "by_inputs.yml", content)
    done = adamerge(*prompts(saved), *SHORT, "--html", recipe=by_inputs)
    assert done.exit_code == 0, done.output
    assert "the recipe with these factors" in done.stdout
    assert "# Factors by AdaMerging" in (tmp_path / "tuned.md").read_text(encoding="utf-8")
    page = (tmp_path / "tuned.html").read_text(encoding="utf-8")
    assert "Factors of by_inputs.yml by AdaMerging" in page
    after = yaml.safe_load((tmp_path / "tuned.yml").read_text(encoding="utf-8"))
    assert after["parameters"]["amplify"] == "none"
    for entry in after["models"]:
        found = entry["parameters"]["amplify_90"]
        assert len(found) == 22
        assert len({of_linear["value"] for of_linear in found}) > 11
    merged = CliRunner().invoke(
        mergekit_yaml, [str(tmp_path / "tuned.yml"), str(tmp_path / "merged")]
    )
    assert merged.exit_code == 0, merged.output


def test_activations_that_were_observed_anew(
    adamerge: Adamerge, saved: Path, tmp_path: Path
) -> None:
    """A run does not go on from states of other activations."""
    content = yaml.safe_load((saved / "recipe.yml").read_text(encoding="utf-8"))
    content["merge_method"] = "dppa_regmean"
    for entry in content["models"]:
        model = Path(entry["model"]).name
        entry["parameters"]["activations"] = write_moments(
            tmp_path / f"{model}.safetensors", saved, model, draw_moments(saved, model, 0)
        )
    by_inputs = write_recipe(tmp_path / "by_inputs.yml", content)
    assert adamerge(*prompts(saved), *SHORT, recipe=by_inputs).exit_code == 0
    write_moments(tmp_path / "math.safetensors", saved, "math", draw_moments(saved, "math", 1))
    again = adamerge(*prompts(saved), *SHORT, recipe=by_inputs)
    assert again.exit_code == 1
    assert "differs in activations; delete it" in again.output


@pytest.mark.parametrize("with_prompts", [True, False])
def test_dev_scores_choose(
    with_prompts: bool, adamerge: Adamerge, saved: Path, tmp_path: Path
) -> None:
    options = [f"--tasks={saved / 'tasks.yml'}", *(prompts(saved) if with_prompts else ())]
    done = adamerge(*options, *SHORT, "--objective=entropy")
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "tuned.yml.journal.jsonl").read_text(encoding="utf-8").splitlines()
    _, dense, *states = map(json.loads, lines)
    assert set(dense["dense"]) == {"math_dev", "law_dev"}
    values = [state["evaluation"]["value"] for state in states]
    best = values.index(max(values))
    assert f"(after {states[best]['step']} of 4 steps)" in done.stdout
    assert values[best] >= values[0]
    again = adamerge(*options, *SHORT, "--objective=entropy")
    assert again.stdout == done.stdout


def test_a_public_test_split_that_chooses_draws_a_warning(
    adamerge: Adamerge, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = tmp_path / "tasks"
    shutil.copytree(saved / "tasks", tasks)
    text = (tasks / "law_dev.yaml").read_text(encoding="utf-8")
    (tasks / "piqa.yaml").write_text(text.replace("task: law_dev", "task: piqa"), "utf-8")
    content = yaml.safe_load((saved / "tasks.yml").read_text(encoding="utf-8"))
    content["domains"]["law"]["dev"] = {"piqa": "acc,none"}
    path = write_recipe(tmp_path / "tasks.yml", {**content, "include_path": str(tasks)})
    done = adamerge(f"--tasks={path}", *prompts(saved), "--steps=1", "--objective=entropy")
    assert done.exit_code == 0, done.output
    assert "piqa is a public test split" in caplog.text


def test_the_same_seed_the_same_weights(adamerge: Adamerge, saved: Path, tmp_path: Path) -> None:
    found = []
    for seed in ("1", "1", "2"):
        (tmp_path / "tuned.yml.journal.jsonl").unlink(missing_ok=True)
        done = adamerge(*prompts(saved), *SHORT, f"--seed={seed}")
        assert done.exit_code == 0, done.output
        found.append((tmp_path / "tuned.yml").read_text(encoding="utf-8"))
    assert found[0] == found[1] != found[2]


def test_another_runs_journal(adamerge: Adamerge, saved: Path) -> None:
    assert adamerge(*prompts(saved), *SHORT).exit_code == 0
    more = adamerge(*prompts(saved), *SHORT, "--steps=6")
    assert more.exit_code == 0, more.output
    other = adamerge(*prompts(saved), *SHORT, "--anchor=3")
    assert other.exit_code == 1
    assert "differs in descent; delete it" in other.output


SCRIPT = """
import signal
import sys

# A shell's background jobs ignore it, and so would what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

from dppa_mergekit.cli.main import main

main(sys.argv[1:])
"""


def begin(saved: Path, output: Path) -> subprocess.Popen[str]:
    """Start a run of the finest granularity, with teachers in every step."""
    arguments = [
        "adamerge",
        str(saved / "recipe.yml"),
        f"--output={output}",
        *prompts(saved),
        *("--steps=60", "--every=2", "--batch-size=2", "--lr=0.01"),
        *("--granularity=partition", "--objective=hidden"),
    ]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def grown(path: Path, lines: int) -> bool:
    return path.exists() and path.read_bytes().count(b"\n") >= lines


@pytest.mark.long
def test_killed_and_interrupted(saved: Path, tmp_path: Path) -> None:
    _, errors = begin(saved, tmp_path / "whole.yml").communicate()
    expected = (tmp_path / "whole.yml").read_text(encoding="utf-8")
    output = tmp_path / "killed.yml"
    journal = tmp_path / "killed.yml.journal.jsonl"
    for wanted, how in ((4, signal.SIGKILL), (8, signal.SIGTERM), (12, signal.SIGINT)):
        process = begin(saved, output)
        while process.poll() is None and not grown(journal, wanted):
            time.sleep(0.005)
        process.send_signal(how)
        _, errors = process.communicate()
        assert output.exists() == (how != signal.SIGKILL), errors
        if how != signal.SIGKILL:
            assert process.returncode == 130
            assert f"Interrupted; the best so far is in {output}; run the same command" in errors
            assert "again to continue." in errors
            assert "Traceback" not in errors
    assert output.read_text(encoding="utf-8") != expected
    _, errors = begin(saved, output).communicate()
    assert output.read_text(encoding="utf-8") == expected, errors


def refused(done: Result, sentence: str) -> None:
    assert done.exit_code in (1, 2), done.output
    assert sentence in done.output
    assert "Traceback" not in done.output


def test_bad_input(adamerge: Adamerge, saved: Path, tmp_path: Path) -> None:
    def file(name: str, text: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        return f"--prompts={tmp_path / name}"

    tasks = f"--tasks={saved / 'tasks.yml'}"
    refused(adamerge(), "There are no prompts")
    refused(adamerge(f"--prompts={saved / 'none.txt'}"), "does not exist")
    refused(adamerge(file("math.txt", " \n\n")), "holds no prompts")
    refused(adamerge(file("math.jsonl", '{"text": "w1"}\n')), "line 1 is not")
    refused(adamerge(file("math.jsonl", "[1]\n")), "line 1 is not")
    refused(adamerge(file("chat.txt", "w1\n")), "not clear which model teaches chat")
    refused(adamerge(file("chat.txt", "w1\n"), tasks), "The tasks file has no domain chat")
    refused(adamerge(prompts(saved)[0]), "whose skill would be lost: give --prompts law.txt")
    content = yaml.safe_load((saved / "tasks.yml").read_text(encoding="utf-8"))
    del content["domains"]["law"]
    content["include_path"] = str(saved / "tasks")
    fewer = f"--tasks={write_recipe(tmp_path / 'fewer.yml', content)}"
    refused(adamerge(fewer), "add a domain with this model to the tasks file")
    content["domains"] = {}
    none = f"--tasks={write_recipe(tmp_path / 'none.yml', content)}"
    for objective in ("entropy", "distill"):
        refused(adamerge(none, f"--objective={objective}"), "The tasks file has no domains; ")
    refused(adamerge(*prompts(saved, ".txt"), "--objective=loss"), "have no completion")
    refused(adamerge(tasks, "--objective=loss"), "needs prompts with completions")
    refused(adamerge(prompts(saved)[0], prompts(saved, ".txt")[0]), "two files have the same name")
    refused(adamerge(*prompts(saved), "--lr=0"), "lr")
    refused(adamerge(*prompts(saved), "--lr=nan"), "nan is not a finite number")
    refused(adamerge(*prompts(saved), "--anchor=inf"), "inf is not a finite number")
    refused(adamerge(*prompts(saved), "--device=nowhere"), "--device is 'nowhere'; allowed is")
    for method in ("dppa_ties", "task_arithmetic"):
        models = {"math": {"weight": 1.0}}
        other = write_recipe(tmp_path / "other.yml", recipe(saved, method, models))
        refused(adamerge(*prompts(saved), recipe=other), f"weights of {method} cannot be learned")
    assert not (tmp_path / "tuned.yml").exists()


def test_hidden_states_of_other_layers(tmp_path: Path, saved: Path, adamerge: Adamerge) -> None:
    content = yaml.safe_load((saved / "recipe.yml").read_text(encoding="utf-8"))
    sources = [{**entry, "layer_range": [0, 2]} for entry in content.pop("models")]
    base = {"model": content["base_model"], "layer_range": [0, 2]}
    shorter = {**content, "slices": [{"sources": [base, *sources]}]}
    path = write_recipe(tmp_path / "shorter.yml", shorter)
    done = adamerge(*prompts(saved), "--objective=hidden", recipe=path)
    refused(done, "its num_hidden_layers is 3, and that of the merge is 2; allowed are distill")


def test_a_model_that_is_not_a_number(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    # Finite weights, logits that are not: the norm's scale overflows what it multiplies.
    tensors = tensors_of(family / "math")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 3e38)
    import safetensors.torch

    safetensors.torch.save_file(tensors, family / "math" / "model.safetensors", {"format": "pt"})
    models = {"math": {"weight": 1.0}}
    path = write_recipe(tmp_path / "recipe.yml", recipe(family, "dp", models))
    (tmp_path / "math.txt").write_text("w1 w2\n", encoding="utf-8")
    done = CliRunner().invoke(
        main,
        [
            "adamerge",
            str(path),
            f"--prompts={tmp_path / 'math.txt'}",
            f"--output={tmp_path / 'tuned.yml'}",
            "--objective=entropy",
        ],
    )
    refused(done, "The loss of domain math is nan at step 0.")
