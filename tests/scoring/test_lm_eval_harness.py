"""Scoring by lm-evaluation-harness: few-shot examples, items, and refused tasks."""

import shutil
from pathlib import Path

import pytest
import yaml
from search_models import save_search
from transformers import AutoModelForCausalLM, AutoTokenizer

from dppa_mergekit.scoring.lm_eval_harness import Harness
from dppa_mergekit.scoring.tasks import TasksError, TasksFile


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_search(tmp_path_factory.mktemp("harness"))


def harness(
    saved: Path, folder: Path, metric: str = "acc,none", more: str = "", **changes: object
) -> Harness:
    """A harness for math's dev task, with more lines in its YAML file and changed keys."""
    shutil.copytree(saved / "tasks", folder / "tasks")
    lines = (folder / "tasks" / "math_dev.yaml").read_text(encoding="utf-8")
    loader = "custom_dataset: !function loader.load\n"
    content = {**yaml.safe_load(lines.replace(loader, "")), **changes}
    text = loader + more + yaml.safe_dump(content)
    (folder / "tasks" / "math_dev.yaml").write_text(text, encoding="utf-8")
    domains = {"math": {"model": "./math", "dev": {"math_dev": metric}}}
    return Harness(
        TasksFile.model_validate({"include_path": folder / "tasks", "domains": domains}),
        {"math_dev": metric},
    )


def test_items_have_the_same_fewshot_examples_every_time(saved: Path, tmp_path: Path) -> None:
    found = harness(saved, tmp_path, num_fewshot=2, fewshot_split="test")
    model = AutoModelForCausalLM.from_pretrained(saved / "math")
    tokenizer = AutoTokenizer.from_pretrained(saved / "math")
    items = {"math_dev": range(20)}
    prompts = found.prompts(model, tokenizer, items)
    assert len({len(prompt) for prompt in prompts} - {6}) > 0
    first = found.score(model, tokenizer, items)
    assert found.prompts(model, tokenizer, items) == prompts
    assert found.score(model, tokenizer, items) == first


def test_a_metric_whose_lower_values_are_better(saved: Path, tmp_path: Path) -> None:
    metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": False}]
    with pytest.raises(TasksError, match=r"^Task math_dev: lower values of acc,none are better"):
        harness(saved, tmp_path, metric_list=metrics)


def test_a_custom_metric(saved: Path, tmp_path: Path) -> None:
    # lm-eval does not know whether higher values of it are better.
    (saved / "tasks" / "hits.py").write_text(
        "def hits(doc, results):\n    return {'hit': 1.0}\n", encoding="utf-8"
    )
    found = harness(
        saved,
        tmp_path,
        "hit,none",
        "process_results: !function hits.hits\n",
        metric_list=[{"metric": "hit", "aggregation": "mean"}],
    )
    assert found.item_count("math_dev") == 48


def test_a_task_that_runs_code(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(TasksError, match=r"^Task math_dev runs code that models write"):
        harness(saved, tmp_path, unsafe_code=True)


@pytest.mark.parametrize(("aggregation", "number"), [("mean", 48), ("median", 0)])
def test_only_a_mean_has_items(aggregation: str, number: int, saved: Path, tmp_path: Path) -> None:
    # The model is always right, so the median of the items happens to be their mean.
    metrics = [{"metric": "acc", "aggregation": aggregation, "higher_is_better": True}]
    found = harness(saved, tmp_path, metric_list=metrics)
    model = AutoModelForCausalLM.from_pretrained(saved / "math")
    tokenizer = AutoTokenizer.from_pretrained(saved / "math")
    score = found.score(model, tokenizer, {"math_dev": range(48)})["math_dev"]
    assert score.value == 1
    assert len(score.items) == number


def test_a_task_that_no_file_defines(saved: Path, tmp_path: Path) -> None:
    def refusal(folder: Path | None = tmp_path, defaults: bool = False) -> str:
        domains = {"math": {"model": "./math", "dev": {"sums": "acc,none"}}}
        given = {"include_path": folder, "include_defaults": defaults, "domains": domains}
        with pytest.raises(TasksError) as refused:
            Harness(TasksFile.model_validate(given), {"sums": "acc,none"})
        return refused.value.message

    begin = "lm-eval knows no task sums: "
    assert refusal(None).startswith(f"{begin}the tasks file has no include_path")
    text = (saved / "tasks" / "math_dev.yaml").read_text(encoding="utf-8")
    (tmp_path / "sums.yml").write_text(text.replace("math_dev", "sums"), encoding="utf-8")
    said = refusal()
    assert said.startswith(f"{begin}no file in {tmp_path} (include_path) that ends in .yaml")
    assert said.endswith("The tasks that come with lm-eval need include_defaults: true.")
    # lm-eval skips a file that is not YAML; the tags of its own are no mistake.
    (tmp_path / "others.yaml").write_text(text, encoding="utf-8")
    broken = tmp_path / "below" / "sums.yaml"
    broken.parent.mkdir()
    broken.write_text("task: sums\n  output_type: multiple_choice\n", encoding="utf-8")
    (tmp_path / "folder.yaml").mkdir()
    said = refusal()
    assert f"{tmp_path / 'folder.yaml'} cannot be read: " in said
    assert f"{broken} is not YAML: mapping values are not allowed here (line 2, column 14)" in said
    assert "others" not in said
