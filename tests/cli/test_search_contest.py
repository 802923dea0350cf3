"""`mergekit-dppa search --methods`: a contest of methods, and `--tune both`."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from commands import Merge
from search_models import save_task
from search_runs import Command, changed, evaluated, journal

from dppa_mergekit.errors import RecipeError
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.search.entrants import entrants_of, parse_methods

METHODS = "task_arithmetic,dppa,dare_regmean"


def content_of(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def without_densities(content: dict) -> None:
    for entry in content["models"]:
        del entry["parameters"]["density"]


def test_the_best_recipe_and_a_table_of_all(
    command: Command, saved: Path, tmp_path: Path, merge: Merge
) -> None:
    recipe = changed(saved, tmp_path, "recipe.yml", without_densities)
    result = command(
        "--tune=weights", f"--methods={METHODS}", "--max-evaluations=18", "--html", recipe=recipe
    )
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    entrants = record["results"]
    assert {(one["method"], one["density"]) for one in entrants} == {
        ("task_arithmetic", None),
        *((method, density) for method in METHODS.split(",")[1:] for density in (0.1, 0.2)),
    }
    budgets = {one["method"]: 6 if one["density"] is None else 3 for one in entrants}
    assert all(0 < one["evaluations"] <= budgets[one["method"]] for one in entrants)
    confirmed = [one for one in entrants if not one["given_up"]]
    assert entrants[: len(confirmed)] == confirmed
    # The fine-tuned models were scored once, for all entrants.
    known = [entry for entry in journal(tmp_path)[1:] if entry["candidate"] == "dense"]
    assert len(known) == 1
    summary = (tmp_path / "tuned.md").read_text(encoding="utf-8")
    for one in entrants:
        label = one["method"] if one["density"] is None else f"{one['method']}, density"
        assert label in result.stdout
        assert re.search(rf"^\| {one['method']} +\| ", summary, flags=re.MULTILINE)
    (sentence,) = [
        line for line in result.stdout.splitlines() if re.search("leads|separated", line)
    ]
    assert sentence in summary
    assert sentence in (tmp_path / "tuned.html").read_text(encoding="utf-8")
    assert (tmp_path / "tuned.png").stat().st_size > 10000
    # The score of the winner is that of the checkpoint that mergekit makes of its recipe.
    winner = content_of(tmp_path / "tuned.yml")
    assert winner["merge_method"] == entrants[0]["method"]
    assert (tmp_path / "tuned.yml").read_text(encoding="utf-8").startswith("# The best of 5 entr")
    merge(winner, "--random-seed", "0", output="whole")
    scores = [evaluated(saved, tmp_path / "whole", f"{name}_dev") for name in ("math", "law")]
    assert entrants[0]["value"] == pytest.approx(100 * sum(scores) / 2, abs=1e-9)


def at_a_low_density(content: dict) -> None:
    """Prune to a density at which DARE multiplies what is left by 50.

    A draw depends on the path of its model. So paths are relative, and the same in every run.
    """
    content["base_model"] = Path(content["base_model"]).name
    for entry in content["models"]:
        entry["model"] = Path(entry["model"]).name
        entry["parameters"]["density"] = 0.02


def test_a_method_that_is_surely_behind_is_given_up(
    command: Command, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved)
    recipe = changed(saved, tmp_path, "recipe.yml", at_a_low_density)
    arguments = (
        "--tune=weights",
        "--methods=dare_linear,dppa_regmean,dppa",
        "--range",
        "0.5",
        "1.5",
    )
    result = command(*arguments, "--max-evaluations=30", recipe=recipe)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    by_method = {one["method"]: one for one in record["results"]}
    assert by_method["dare_linear"]["given_up"]
    assert by_method["dare_linear"]["evaluations"] <= 6 < 30 // 3
    assert re.search(r"dare_linear: dev .*; given up, \d+", result.stdout)


def test_nothing_is_given_up_before_its_factors_were_tried(
    command: Command, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved)

    def at_large_weights(content: dict) -> None:
        """Weigh so much that no factor of the search makes a random draw good."""
        at_a_low_density(content)
        for entry in content["models"]:
            entry["parameters"]["weight"] = 3

    recipe = changed(saved, tmp_path, "recipe.yml", at_large_weights)
    arguments = ("--tune=both", "--methods=dare_dpa,dppa_regmean", "--range", "3", "4")
    result = command(*arguments, "--max-evaluations=40", recipe=recipe)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    by_method = {one["method"]: one for one in record["results"]}
    assert by_method["dare_dpa"]["given_up"]
    entries = [entry for entry in journal(tmp_path)[1:] if entry["domain"] == "dare_dpa"]
    assert any("amplify_90 1," not in entry["candidate"] for entry in entries)


def test_weights_and_then_factors(
    command: Command, saved: Path, tmp_path: Path, merge: Merge
) -> None:
    result = command("--tune=both", "--max-evaluations=16")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    (found,) = record["results"]
    names = [name for name in found["factors"] if "amplify" in name]
    assert found["after"]["value"] >= found["before"]["value"]
    candidates = [entry["candidate"] for entry in journal(tmp_path)[2:]]
    assert any("amplify_90 1," not in candidate for candidate in candidates)
    content = content_of(tmp_path / "tuned.yml")
    for name in names:
        model, _, factor = name.rpartition(" ")
        (entry,) = [given for given in content["models"] if given["model"] == model]
        assert entry["parameters"][factor] == found["factors"][name]
    merge(content, output="whole")
    scores = [evaluated(saved, tmp_path / "whole", f"{name}_dev") for name in ("math", "law")]
    assert found["after"]["value"] == pytest.approx(100 * sum(scores) / 2, abs=1e-9)
    summary = (tmp_path / "tuned.md").read_text(encoding="utf-8")
    assert summary.startswith("# Weights and amplification factors of the merge")


def test_both_in_a_contest(command: Command, saved: Path, tmp_path: Path) -> None:
    arguments = ("--tune=both", "--methods=dp,dppa", "--max-evaluations=16")
    assert command(*arguments).exit_code == 0
    entries = journal(tmp_path)[1:]
    of_methods = {
        method: [entry["candidate"] for entry in entries if entry["domain"] == method]
        for method in ("dp", "dppa")
    }
    assert not any("amplify" in candidate for candidate in of_methods["dp"])
    assert any("amplify_90" in candidate for candidate in of_methods["dppa"])
    # A method may join, and nothing is scored twice.
    more = command("--tune=both", "--methods=dp,dppa,owl", "--max-evaluations=24")
    assert more.exit_code == 0, more.output
    again = [entry for entry in journal(tmp_path)[1:] if entry["domain"] in ("dp", "dppa")]
    pairs = [(entry["domain"], entry["candidate"], entry["fold"]) for entry in again]
    assert len(pairs) == len(set(pairs))


SCRIPT = "import sys; from dppa_mergekit.cli.main import main; main(sys.argv[1:])"


@pytest.mark.long
def test_killed_and_with_workers(saved: Path, tmp_path: Path) -> None:
    def begin(output: str, *options: str) -> subprocess.Popen[str]:
        arguments = [
            *("search", str(saved / "recipe.yml"), f"--tasks={saved / 'tasks.yml'}"),
            *("--tune=weights", "--methods=dppa,dppa_regmean", "--max-evaluations=14"),
            *(f"--output={tmp_path / output}", *options),
        ]
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    _, errors = begin("whole.yml").communicate()
    expected = content_of(tmp_path / "whole.yml")
    kept = tmp_path / "killed.yml.journal.jsonl"
    process = begin("killed.yml")
    while process.poll() is None and not (kept.exists() and kept.read_bytes().count(b"\n") >= 12):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "killed.yml").exists()
    _, errors = begin("killed.yml", "--workers=2").communicate()
    assert content_of(tmp_path / "killed.yml") == expected, errors


def test_what_enters() -> None:
    content: dict = {
        "merge_method": "dppa",
        "base_model": "base",
        "models": [
            {"model": "math", "parameters": {"amplify_90": 1.5, "max_fluctuation": 0.1}},
            {"model": "law", "parameters": {"weight": 0.7, "activations": "law.safetensors"}},
        ],
        "parameters": {"lambda": 0.9, "significance": "count"},
    }
    recipe = Recipe(content)
    by_label = {one.label: one.recipe for one in entrants_of(recipe, parse_methods("all"))}
    assert "dp" not in {label.partition(",")[0] for label in by_label}
    for label in ("dppa_regmean, density 0.1", "dare_dpa, density 0.2", "task_arithmetic"):
        assert label in by_label
    for one in by_label.values():
        one.configuration()
        assert one.content["parameters"]["lambda"] == 0.9  # type: ignore[index]
    plain = by_label["task_arithmetic"].content
    assert plain["models"] == [
        {"model": "math", "parameters": {"weight": 0.3}},
        {"model": "law", "parameters": {"weight": 0.7}},
    ]
    assert plain["parameters"] == {"lambda": 0.9}
    # A common weight would cancel out.
    assert by_label["ties, density 0.1"].content["parameters"]["normalize"] is False  # type: ignore[index]
    assert by_label["della, density 0.1"].parameters("math")["epsilon"] == 0.05
    of_inputs = by_label["dppa_regmean, density 0.2"]
    assert of_inputs.parameters("law")["activations"] == "law.safetensors"
    assert "weight" not in of_inputs.parameters("math")
    assert by_label["dppa, density 0.2"].parameters("math")["amplify_90"] == 1.5
    # A density of one model is no reason to leave the other unpruned.
    named = recipe.with_parameters("math", {"density": 0.3})
    ties, della = (one.recipe for one in entrants_of(named, ["ties", "della"]))
    assert ties.parameters("math")["density"] == 0.3
    assert ties.parameters("law")["density"] == 0.2
    assert della.parameters("math")["epsilon"] == 0.15
    wide = named.with_parameters("math", {"epsilon": 0.3})
    with pytest.raises(RecipeError, match=r"math: epsilon is 0\.3; allowed at density 0\.3 is a n"):
        entrants_of(wide, ["della"])
    of_linears = [{"filter": "mlp", "value": 0.1}, {"value": 0.4}]
    (della,) = entrants_of(recipe.with_parameters("math", {"density": of_linears}), ["della"])
    assert della.recipe.parameters("math")["epsilon"] == 0.05
    # A density that only a later slice names.
    slices = [
        {"sources": [{"model": "math", "parameters": given}, {"model": "law"}]}
        for given in ({}, {"density": 0.4})
    ]
    sliced = Recipe({"merge_method": "dppa", "base_model": "base", "slices": slices})
    (ties,) = entrants_of(sliced, ["ties"])
    assert ties.density is None
    later = ties.recipe.content["slices"][1]["sources"][0]  # type: ignore[index]
    assert later["parameters"]["density"] == 0.4
    assert content["models"][0]["parameters"] == {"amplify_90": 1.5, "max_fluctuation": 0.1}


def test_a_guard_that_everything_loses(command: Command, saved: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    shutil.copytree(saved / "tasks", tasks)
    save_task(tasks, "guard_dev", saved / "base", 48, seed=3)

    def guard(content: dict) -> None:
        content["guard"] = {"dev": {"guard_dev": "acc,none"}}
        content["include_path"] = str(tasks)

    path = changed(saved, tmp_path, "tasks.yml", guard)
    arguments = ("--tune=weights", "--methods=dppa,dare_linear", "--max-evaluations=12")
    done = command(*arguments, "--guard-loss=0", "--range", "1.2", "1.5", tasks=path)
    assert done.exit_code == 0, done.output
    summary = (tmp_path / "tuned.md").read_text(encoding="utf-8")
    # What is shown are Domain-Ratios, and no penalties.
    assert max(float(number) for number in re.findall(r"\d+\.\d", summary + done.stdout)) < 1000
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    lost = [one["lost"] for one in record["results"]]
    assert summary.count("loses more of the guard") >= sum(share > 0 for share in lost)


def test_budgets_are_those_of_the_journal(command: Command, saved: Path, tmp_path: Path) -> None:
    """Rounds go on with the same candidates, also where factors come after weights."""
    assert command("--tune=both", "--methods=dppa,dare_dpa", "--max-evaluations=32").exit_code == 0
    entries = journal(tmp_path)[1:]
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    for one in record["results"]:
        tried = {entry["candidate"] for entry in entries if entry["domain"] == one["method"]}
        assert len(tried) == one["evaluations"] <= 16
    assert any("amplify_90" in str(entry["candidate"]) for entry in entries)


def test_what_cannot_enter(command: Command, saved: Path, tmp_path: Path) -> None:
    def stacked(content: dict) -> None:
        every = [{"model": content["base_model"]}, *content.pop("models")]
        content["slices"] = [
            {"sources": [{**entry, "layer_range": layers} for entry in every]}
            for layers in ([0, 2], [1, 3])
        ]

    recipe = changed(saved, tmp_path, "recipe.yml", stacked)
    content = content_of(recipe)
    content["merge_method"] = "task_arithmetic"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = command("--tune=weights", "--methods=task_arithmetic,dppa", recipe=recipe)
    assert done.exit_code == 1
    assert "dppa cannot enter the contest, so leave dppa out of --methods: " in done.output
    assert not (tmp_path / "tuned.yml.journal.jsonl").exists()
    baseless = changed(saved, tmp_path, "recipe.yml", lambda content: content.pop("base_model"))
    content = content_of(baseless)
    content["merge_method"] = "linear"
    for entry in content["models"]:
        del entry["parameters"]["density"]
    baseless.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = command("--tune=weights", "--methods=ties,dppa", recipe=baseless)
    assert "has no base_model" in done.output
    assert "Traceback" not in done.output


def test_mistakes(command: Command, saved: Path, tmp_path: Path) -> None:
    for arguments, sentence in (
        (("--tune=weights", "--methods=dppa,slerp"), "--methods names slerp, whose weights cannot"),
        (("--tune=weights", "--methods=dppa"), "a contest needs at least two methods, or all"),
        (("--tune=factors", "--methods=dppa,dp"), "--methods"),
        (("--tune=weights", "--methods=dppa,dp", "--shared"), "--shared"),
        (("--tune=weights", "--methods=dppa,dp", "--strategy=paper"), "--strategy"),
        (("--tune=weights", "--methods=all,dppa"), "all stands alone"),
        (("--tune=both", "--methods=,"), "a contest needs at least two methods"),
        (
            ("--tune=weights", "--methods=dppa,dp", "--max-evaluations=1"),
            "--max-evaluations is 1; allowed is a number from 2, one for each entrant.",
        ),
    ):
        done = command(*arguments)
        assert done.exit_code in (1, 2), done.output
        assert sentence in done.output
        assert "Traceback" not in done.output
    with pytest.raises(RecipeError, match=r"allowed are task_arithmetic, ties, .*, or all"):
        parse_methods("nothing,dppa")
    dp = changed(saved, tmp_path, "recipe.yml", lambda content: content.update(merge_method="dp"))
    done = command("--tune=both", recipe=dp)
    assert "dp has no factors; allowed are dppa" in done.output
    assert not (tmp_path / "tuned.yml").exists()
