"""MergeBench's tasks and prompts, without its datasets and models."""

from functools import cache
from pathlib import Path

import datasets
import lm_eval.tasks
import mergebench_prompts
import pytest
from click.testing import CliRunner
from costs import PROMPTS
from lm_eval.tasks import TaskManager
from mergebench_models import CODE_TASKS, DOMAINS, MERGEBENCH, TASKS
from model_sets import Task

from dppa_mergekit.prompts import read_prompts
from dppa_mergekit.recipes.references import short_name

FOLDERS = ("gsm8k", "ifeval", "humaneval", "mbpp", "okapi")
"""The folders of lm-eval that hold these tasks; all of its tasks would take long to index."""


@cache
def manager() -> TaskManager:
    parent = Path(lm_eval.tasks.__file__).parent
    return TaskManager(
        include_path=[str(parent / name) for name in FOLDERS], include_defaults=False
    )


@pytest.mark.parametrize(
    "task", [task for tasks in TASKS.values() for task in tasks], ids=lambda task: task.test
)
def test_lm_eval_has_the_tasks_and_their_metrics(task: Task) -> None:
    configuration = manager().task_index[task.test].cfg
    metric, _, chosen = task.metric.partition(",")
    assert metric in [entry["metric"] for entry in configuration["metric_list"]]
    filters = [entry["name"] for entry in configuration.get("filter_list", ())]
    assert chosen in (filters or ["none"])
    assert not configuration.get("unsafe_code")
    choices = configuration["output_type"] == "multiple_choice"
    assert choices == (task.new_tokens == 0) == (task.requests > task.items)


@pytest.mark.parametrize("task", CODE_TASKS["coding"], ids=lambda task: task.test)
def test_code_tasks_run_code(task: Task) -> None:
    assert manager().task_index[task.test].cfg["unsafe_code"]


def test_experts_are_named_as_on_the_hub() -> None:
    assert MERGEBENCH.pools["llama-3.2-3b"].experts == [
        f"MergeBench/Llama-3.2-3B_{domain}" for domain in DOMAINS
    ]
    assert MERGEBENCH.pools["gemma-2-2b"].experts == [
        f"MergeBench/gemma-2-2b_{domain}" for domain in DOMAINS
    ]


@pytest.mark.parametrize("rows", [3, 2 * PROMPTS])
def test_prompts(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, split: str) -> datasets.Dataset:
        asked.append((path, split))
        domain = path.removeprefix("MergeBench/").removesuffix("_val")
        column = mergebench_prompts.COLUMNS[domain]
        return datasets.Dataset.from_list(
            [{column: f"{domain} {row}", "answer": "so"} for row in range(rows)]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    done = CliRunner().invoke(mergebench_prompts.main, ["gemma-2-2b", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert asked == [(f"MergeBench/{domain}_val", "train") for domain in DOMAINS]
    for domain, expert in zip(DOMAINS, MERGEBENCH.pools["gemma-2-2b"].experts, strict=True):
        prompts = read_prompts(tmp_path / f"{short_name(expert)}.jsonl")
        assert len({prompt.text for prompt in prompts}) == min(rows, PROMPTS)
        assert all(f"Instruction:\n{domain} " in prompt.text for prompt in prompts)
