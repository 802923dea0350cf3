"""`mergekit-dppa search --tune=weights`."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import Merge
from search_models import save_task
from search_runs import Command, changed, evaluated, weights_of


@pytest.mark.parametrize(("method", "start"), [("dppa", 0.1), ("ties", 1.3), ("dare_linear", 0.1)])
def test_weights_of_the_whole_merge(
    method: str, start: float, command: Command, saved: Path, tmp_path: Path, merge: Merge
) -> None:
    def change(content: dict) -> None:
        content["merge_method"] = method
        # With it, as TIES has it, equal weights cancel out.
        content["parameters"] = {"normalize": False}
        for entry in content["models"]:
            entry["parameters"]["weight"] = start

    recipe = changed(saved, tmp_path, "recipe.yml", change)
    result = command("--tune=weights", "--max-evaluations=16", recipe=recipe)
    assert result.exit_code == 0, result.output
    assert ("--random-seed 0 makes the draw" in result.stdout) == method.startswith("dare")
    before, tuned = (
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in (recipe, tmp_path / "tuned.yml")
    )
    assert weights_of(tmp_path / "tuned.yml") != weights_of(recipe)
    for content in (before, tuned):
        for entry in content["models"]:
            del entry["parameters"]["weight"]
    assert tuned == before
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    (found,) = record["results"]
    assert found["after"]["value"] > found["before"]["value"]
    ratios = [after["value"] for _, after in found["parts"].values()]
    assert found["after"]["value"] == pytest.approx(sum(ratios) / 2)
    assert "  math: " in result.stdout
    # The scores are those of the checkpoint that the recipe gives.
    content = yaml.safe_load((tmp_path / "tuned.yml").read_text(encoding="utf-8"))
    merge(content, "--random-seed", "0", output="whole")
    for name in ("math", "law"):
        score = evaluated(saved, tmp_path / "whole", f"{name}_dev")
        assert found["parts"][name][1]["value"] == pytest.approx(100 * score, abs=1e-9)


def test_one_weight_by_the_worst_domain(command: Command, saved: Path, tmp_path: Path) -> None:
    result = command("--tune=weights", "--shared", "--by=worst", "--max-evaluations=9")
    assert result.exit_code == 0, result.output
    first, second = weights_of(tmp_path / "tuned.yml")
    assert first == second
    record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))["tuned.yml"]
    (found,) = record["results"]
    ratios = [after["value"] for _, after in found["parts"].values()]
    assert found["after"]["value"] == min(ratios)
    summary = (tmp_path / "tuned.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| every model +\| +{first:g} \|$", summary, flags=re.MULTILINE)


def test_a_guard_that_may_lose_nothing(command: Command, saved: Path, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    shutil.copytree(saved / "tasks", tasks)
    save_task(tasks, "guard_dev", saved / "base", 48, seed=3)

    def change(content: dict) -> None:
        content["guard"] = {"dev": {"guard_dev": "acc,none"}}
        content["include_path"] = str(tasks)

    path = changed(saved, tmp_path, "tasks.yml", change)
    results = {}
    for loss in ("0", "1"):
        output = tmp_path / f"tuned{loss}.yml"
        arguments = ("--tune=weights", "--max-evaluations=12", f"--guard-loss={loss}")
        assert command(*arguments, tasks=path, output=output).exit_code == 0
        record = json.loads((tmp_path / "dppa_run.json").read_text(encoding="utf-8"))
        (results[loss],) = record[output.name]["results"]
    lost = {loss: 100 - found["parts"]["guard"][1]["value"] for loss, found in results.items()}
    # The base answers as itself where weights are small; where all may be lost, more is gained.
    assert lost["0"] < lost["1"]
    assert results["0"]["after"]["value"] < results["1"]["after"]["value"]


def test_mistakes_with_weights(command: Command, saved: Path, tmp_path: Path) -> None:
    def recipe(change: Callable[[dict], object]) -> Path:
        return changed(saved, tmp_path, "recipe.yml", change)

    def gradient(content: dict) -> None:
        content["models"][0]["parameters"]["weight"] = [0.1, 0.9]

    def linear(content: dict) -> None:
        content["merge_method"] = "linear"
        del content["base_model"]
        for entry in content["models"]:
            del entry["parameters"]["density"]

    cases = [
        (command("--tune=weights", recipe=recipe(linear)),
         "the weights of linear cannot be tuned; allowed are dppa"),
        (command("--tune=weights", recipe=recipe(gradient)), "a search starts from a number"),
        (command("--tune=weights", "--strategy=paper"), "are tuned in one way only"),
        (command("--tune=weights", "--range", "1", "0.5"), "a range from less to more"),
        (command("--tune=weights", "--range", "0", "inf"), "inf is not a finite number"),
        (command("--tune=weights", "--tune-dense"), "--tune-dense has no effect here"),
        (command("--tune=weights", "--per-block"), "--per-block has no effect here"),
        (command("--tune=weights", f"--prompts={saved / 'tasks.yml'}"), "--prompts has no effect"),
    ]  # fmt: skip
    for result, message in cases:
        assert result.exit_code in (1, 2), (message, result.output)
        assert message in result.stderr, result.stderr
    assert not list(tmp_path.glob("tuned.yml*"))
