"""Searches that end in one sentence, or begin with a warning."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from search_runs import Command, changed, journal


def test_mistakes_end_in_one_sentence_before_any_evaluation(
    command: Command, saved: Path, tmp_path: Path
) -> None:
    def recipe(change: Callable[[dict], object]) -> Path:
        return changed(saved, tmp_path, "recipe.yml", change)

    def tasks(change: Callable[[dict], object]) -> Path:
        return changed(saved, tmp_path, "tasks.yml", change)

    def domain(**values: object) -> Callable[[dict], object]:
        return lambda content: content["domains"]["math"].update(values)

    def in_slices(content: dict) -> None:
        models = [content["base_model"], *(entry["model"] for entry in content.pop("models"))]
        content["slices"] = [
            {"sources": [{"model": model, "layer_range": layers} for model in models]}
            for layers in ([0, 1], [1, 3])
        ]

    def with_lora(content: dict) -> None:
        content["models"][0]["model"] += "+lora"

    cases = [
        (command(tasks=tasks(domain(dev={"math_dve": "acc,none"}))),
         "lm-eval knows no task math_dve: did you mean math_dev"),
        (command(tasks=tasks(domain(dev={"math_dev": "exact_match,none"}))),
         "has no metric 'exact_match,none'; it has acc,none"),
        (command(tasks=tasks(domain(model="./maths"))),
         "has no fine-tuned model ./maths; it has"),
        (command(tasks=tasks(domain(test={"math_dev": "acc,none"}))),
         "task math_dev is under math.dev and under math.test"),
        (command(tasks=tasks(domain(dev={}))), "Domain math has no dev tasks"),
        (command(tasks=tasks(lambda c: c.update(batchsize=3))),
         "batchsize: there is no such key; allowed are include_path, "),
        (command(tasks=tasks(domain(dv={}))), "domains.math.dv: there is no such key; allowed are "
         "dev, test, model."),
        (command(recipe="tasks.yml"), "tasks.yml is a tasks file; allowed is a recipe"),
        (command(tasks=tasks(lambda c: c.update(include_path="nowhere"))), "is not a folder"),
        (command(recipe=recipe(lambda c: c.update(merge_method="dp"))),
         "dp has no factors; allowed are dppa, dppa_ties, dare_dpa"),
        (command(recipe=recipe(lambda c: c.update(merge_method="ties"))), "ties has no factors"),
        (command(recipe=recipe(lambda c: c.pop("models"))), "there must be one of models"),
        (command(output=tmp_path / "no" / "tuned.yml"), "cannot be written"),
        (command("--range", "1.5", "2"), "allowed is a range with 1 in it"),
        (command("--shared"), "--shared has no effect here: it needs --tune weights"),
        (command("--guard-loss=0"), "--guard-loss has no effect here"),
        (command(f"--prompts={saved / 'tasks.yml'}"), "it needs --strategy distill"),
        (command("--score-command=bash eval.sh"), "names no {model}"),
        (command(output=saved / "recipe.yml"), "which is an input of the command: name"),
        (command(recipe=recipe(lambda c: c.update(merge_method=["dppa"]))),
         "merge_method: Input should be a valid string"),
        (command("--per-block"), "--per-block needs --strategy distill"),
        (command("--strategy=distill", "--per-block", "--tune-dense"),
         "--tune-dense and --per-block do not go together."),
        (command(output=tmp_path / "tuned.md"), "the extension must be .yml or .yaml"),
        (command(tasks=tasks(lambda c: c["domains"].update({"a/b": c["domains"].pop("law")}))),
         "'a/b' cannot name a domain, since files are named after it"),
        (command("--ray-address=auto"), "it needs --workers"),
        (command("--device=cdua"), "--device is 'cdua'; allowed is a device of torch"),
        (command("--strategy=distill", "--per-block", recipe=recipe(in_slices)),
         "--per-block writes gradients, which mergekit counts anew in each slice"),
        (command(recipe=recipe(with_lora), tasks=tasks(domain(model=f"{saved / 'math'}+lora"))),
         "its LoRA cannot be merged"),
        (command(tasks=tasks(lambda c: c["domains"]["law"].update(model=str(saved / "math")))),
         "Domains math and law have one model"),
        (command("--strategy=distill", "--score-command=score {model}"), "no --score-command"),
    ]  # fmt: skip
    for result, message in cases:
        assert result.exit_code in (1, 2), (message, result.output)
        assert message in result.stderr, result.stderr
        assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("tuned.yml*"))
    result = command("--device=cuda:9")
    assert result.exit_code == 1
    assert "GB and cannot be moved to device cuda:9" in result.stderr
    templated = tasks(lambda c: c.update(apply_chat_template=True))
    result = command(tasks=templated, output=tmp_path / "templated.yml")
    assert result.exit_code == 1
    assert "math has no chat template" in result.stderr


def test_a_fine_tuned_model_that_scores_nothing_ends_it_early(
    command: Command, saved: Path, tmp_path: Path
) -> None:
    # No item of law is right, whatever the order of domains.
    tasks = tmp_path / "tasks"
    shutil.copytree(saved / "tasks", tasks)
    file = tasks / "law_dev.jsonl"
    items = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    wrong = [{**item, "answer": (item["answer"] + 1) % 4} for item in items]
    file.write_text("".join(json.dumps(item) + "\n" for item in wrong), encoding="utf-8")
    path = changed(saved, tmp_path, "tasks.yml", lambda c: c.update(include_path=str(tasks)))
    result = command(tasks=path)
    assert result.exit_code == 1
    assert "Task law_dev: the model before merging scores 0" in result.stderr
    candidates = [entry["candidate"] for entry in journal(tmp_path)[1:]]
    assert candidates == ["dense", "dense"]


def test_a_group_of_tasks_and_a_task_without_its_data(
    command: Command, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved / "tasks", tmp_path / "tasks")
    group = {"group": "both", "task": ["math_dev", "law_dev"]}
    (tmp_path / "tasks" / "both.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    content = yaml.safe_load((saved / "tasks.yml").read_text(encoding="utf-8"))
    content["domains"]["math"]["dev"] = {"both": "acc,none"}
    (tmp_path / "tasks.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    result = command(tasks=tmp_path / "tasks.yml")
    assert result.exit_code == 1
    assert "both is a group of lm-eval's; allowed are the tasks in it." in result.stderr
    (tmp_path / "tasks" / "law_dev.jsonl").unlink()
    content["domains"]["math"]["dev"] = {"math_dev": "acc,none"}
    (tmp_path / "tasks.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    result = command(tasks=tmp_path / "tasks.yml")
    assert result.exit_code == 1
    assert "Task law_dev cannot be loaded:" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_public_test_split_draws_a_warning(
    command: Command, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = tmp_path / "tasks"
    shutil.copytree(saved / "tasks", tasks)
    text = (tasks / "math_dev.yaml").read_text(encoding="utf-8")
    (tasks / "gsm8k.yaml").write_text(text.replace("task: math_dev", "task: gsm8k"), "utf-8")

    def change(content: dict) -> None:
        content["domains"]["math"]["dev"] = {"gsm8k": "acc,none"}
        content["include_path"] = str(tasks)

    path = changed(saved, tmp_path, "tasks.yml", change)
    assert command("--max-evaluations=1", tasks=path).exit_code == 0
    assert "gsm8k is a public test split" in caplog.text


def test_without_lm_eval(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    result = command()
    assert result.exit_code == 1
    assert "pip install 'dppa-mergekit[search]'" in result.stderr
