"""The quickstart: its tasks, its scores, and its pipeline with very little training."""

import json
from pathlib import Path
from random import Random
from threading import Lock

import click.testing
import domains
import evidence
import merging
import pytest
import quickstart
import scoring
import strategies
import torch
import yaml
from items import PARTS, Task, write_held_out
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from mergekit.io.tasks import LoaderCache
from mergekit.scripts.run_yaml import main as mergekit_yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from dppa_mergekit.cli.main import main as mergekit_dppa

EXAMPLES = Path(domains.__file__).parent


def items(task: str, part: str) -> list[dict[str, object]]:
    path = EXAMPLES / "tasks" / f"{task}_{part}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    write_held_out(domains.TASKS, tmp_path)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_bytes() for path in (EXAMPLES / "tasks").glob("*.jsonl")}
    assert written == committed


@pytest.mark.parametrize("task", domains.TASKS, ids=lambda task: task.name)
def test_no_item_is_both_learnt_and_asked(task: Task) -> None:
    dev, test = ({str(item["prompt"]) for item in items(task.name, part)} for part in PARTS)
    drawn = {task.draw_for_training(Random(seed)).prompt for seed in range(500)}
    assert len(dev) >= 100
    assert len(test) >= 100
    assert not dev & test
    assert not drawn & (dev | test)


class Knowing(LM):
    """Gives the right answer to every item, or to none."""

    def __init__(self, knows: bool) -> None:
        super().__init__()
        self._knows = knows
        self._answers = {
            str(item["prompt"]): str(item["answer"])
            for task in domains.TASKS
            for part in PARTS
            for item in items(task.name, part)
        }

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [
            self._answers[request.args[0].strip()] if self._knows else "" for request in requests
        ]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        right = [
            self._answers[request.args[0].strip()] == request.args[1].strip()
            for request in requests
        ]
        return [(0.0 if is_right == self._knows else -9.0, False) for is_right in right]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_the_tasks_score_knowledge(
    part: str, knows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the tasks may be used from anywhere
    settings = yaml.safe_load((EXAMPLES / "tasks.yml").read_text(encoding="utf-8"))
    metrics = {
        task: metric
        for group in [*settings["domains"].values(), settings["guard"]]
        for task, metric in group[part].items()
    }
    assert len(metrics) == len(domains.TASKS)
    manager = TaskManager(include_path=str(EXAMPLES / "tasks"), include_defaults=False)
    results = evaluate(
        Knowing(knows), manager.load(list(metrics)), log_samples=False, bootstrap_iters=0
    )["results"]
    scores = {task: float(results[task][metric]) for task, metric in metrics.items()}
    assert scores == dict.fromkeys(metrics, float(knows))


@pytest.mark.parametrize(
    ("gsm8k", "math", "ratio"),
    [(0.343442002, 0.0646, 53.41), (0.342683851, 0.0664, 54.09), (0.498104625, 0.0842, 73.44)],
)
def test_domain_ratios_are_those_of_the_paper(gsm8k: float, math: float, ratio: float) -> None:
    fine_tuned = {"gsm8k": 0.5981, "math": 0.13}
    scores = {"gsm8k": gsm8k, "math": math}
    found = scoring.compute_domain_ratio(scores, fine_tuned, list(fine_tuned))
    assert found == pytest.approx(ratio, abs=0.01)


def test_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    brief = quickstart.Training(steps=3, batch_size=8, learning_rate=1e-3)
    for name in ("BASE_TRAINING", "TUNING"):
        monkeypatch.setattr(quickstart, name, brief)
    commands = {"mergekit-yaml": mergekit_yaml, "mergekit-dppa": mergekit_dppa}
    alone = Lock()

    def run(output: Path, command: Path, *arguments: str) -> None:
        """Run a command in this process, which has imported everything already."""
        with alone:
            monkeypatch.chdir(output)
            LoaderCache.loaders.clear()
            done = click.testing.CliRunner().invoke(commands[command.name], arguments)
        assert done.exit_code == 0, done.output

    monkeypatch.setattr(quickstart, "run", run)
    # An untrained model answers every item at full length.
    load = scoring.Scorer.load
    monkeypatch.setattr(scoring.Scorer, "load", lambda part, limit=None: load(part, 4))
    monkeypatch.setattr(quickstart, "WEIGHTS", [0.5])
    monkeypatch.setattr(quickstart, "AMPLIFICATIONS", [1.5])
    output = tmp_path / "quickstart"
    quickstart.main(["--output", str(output)], standalone_mode=False)
    table = capsys.readouterr().out.splitlines()
    names = [line.split(":")[0].split()[0] for line in table[2:]]
    assert names[:4] == ["base", "math", "finance", "law"]
    for name in names:
        merged = AutoModelForCausalLM.from_pretrained(output / name)
        tokenizer = AutoTokenizer.from_pretrained(output / name)
        prompt = str(items("addition", "dev")[0]["prompt"])
        logits = merged(**tokenizer(prompt, return_tensors="pt")).logits
        assert logits.shape[-1] == len(tokenizer)
        assert bool(torch.isfinite(logits).all())
    recipes = {path.stem: yaml.safe_load(path.read_text()) for path in output.glob("*.yml")}
    merges = {name for name in names if name.endswith(("_90", "_80")) or "merge" in name}
    assert merges | {"recipe"} == set(recipes)
    assert {recipe["merge_method"] for recipe in recipes.values()} == {
        "task_arithmetic",
        "dare_linear",
        "dppa",
        "dppa_regmean",
    }


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    result = click.testing.CliRunner().invoke(quickstart.main, ["--output", str(tmp_path)])
    assert result.exit_code == 1
    assert "is not empty" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_tables_of_evidence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, ratio in enumerate([90.0, 94.0]):
        found: dict[str, object] = {}
        for row in strategies.ROWS:
            ratios = {"math": ratio, "finance": 80.0, "law": 100.0}
            found[row] = {"ratios": ratios, "evaluations": 9, "seconds": 20.4}
        for name, merged in merging.ROWS.items():
            ratios = dict.fromkeys(merged.domains, ratio)
            spent = {"start": 50.0, "dev": 60.0, "evaluations": 11, "seconds": 30.0}
            found[name] = {"ratios": ratios, **spent}
        (tmp_path / f"seed_{seed}").mkdir()
        text = json.dumps(found)
        (tmp_path / f"seed_{seed}" / "results.json").write_text(text, encoding="utf-8")

    def printed() -> list[list[str]]:
        """The cells of every line."""
        lines = capsys.readouterr().out.splitlines()
        assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
        return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]

    strategies.print_table(tmp_path)
    lines = printed()
    assert len(lines) == 2 + len(strategies.ROWS)
    assert lines[2] == ["80 %", "dare_linear", "92.0 ± 2.8", "80.0 ± 0.0", "100.0 ± 0.0", "", ""]
    assert lines[3][-2:] == ["9", "20"]
    merging.print_table(tmp_path)
    lines = printed()
    assert len(lines) == 2 + 2 * len({(row.merge, row.way) for row in merging.ROWS.values()})
    # Three pairs of domains, two seeds; each domain is in two pairs.
    ratios = ["92.0 ± 2.2", "92.0 ± 2.3", "92.0 ± 2.3", "92.0 ± 2.3"]
    assert ["2", "TIES, 90 %", "search", *ratios, "11", "30"] in lines


def test_evidence_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def train(folder: Path, seed: int, *trainings: object) -> None:
        assert seed == 3
        (folder / "law").mkdir(parents=True)

    def measure_row(folder: Path, test: object, row: str) -> evidence.Result:
        if calls == ["a"]:
            raise KeyboardInterrupt
        calls.append(row)
        return {"value": len(calls)}

    monkeypatch.setattr(evidence, "train_models", train)
    monkeypatch.setattr(evidence, "Test", lambda folder: None)
    with pytest.raises(KeyboardInterrupt):
        evidence.measure(tmp_path, [3], ["a", "b"], measure_row)
    calls[:] = ["x", "y"]
    evidence.measure(tmp_path, [3], ["a", "b"], measure_row)
    assert dict(evidence.read_results(tmp_path)) == {"a": {"value": 1}, "b": {"value": 3}}
