"""Tiny models, and lm-eval tasks whose right answers are those of the fine-tuned models."""

import json
from pathlib import Path
from random import Random

import torch
import yaml
from checkpoints import VOCABULARY, recipe, save_family
from transformers import AutoModelForCausalLM

LOADER = """
import json
from pathlib import Path

import datasets


def load(file, **_):
    lines = (Path(__file__).parent / file).read_text().splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
"""


def save_search(folder: Path, items: int = 48) -> Path:
    """Models, `recipe.yml`, `tasks.yml` and the tasks below a folder; returns it."""
    save_family(folder)
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "loader.py").write_text(LOADER, encoding="utf-8")
    domains = {}
    for name in ("math", "law"):
        save_task(tasks, f"{name}_dev", folder / name, items, seed=1)
        save_task(tasks, f"{name}_test", folder / name, items, seed=2)
        domains[name] = {
            "model": str(folder / name),
            "dev": {f"{name}_dev": "acc,none"},
            "test": {f"{name}_test": "acc,none"},
        }
    content = {"include_path": "./tasks", "batch_size": 64, "domains": domains}
    (folder / "tasks.yml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    models = {"math": {"weight": 0.6, "density": 0.2}, "law": {"weight": 0.5, "density": 0.1}}
    merge = recipe(folder, models=models)
    (folder / "recipe.yml").write_text(yaml.safe_dump(merge, sort_keys=False), encoding="utf-8")
    return folder


def save_task(folder: Path, name: str, model: Path, items: int, seed: int) -> None:
    """A task of multiple choice: which of four tokens the model finds likeliest."""
    live = AutoModelForCausalLM.from_pretrained(model)
    random = Random(f"{name} {seed}")
    lines = []
    for _ in range(items):
        words = [random.randrange(VOCABULARY - 4) for _ in range(6)]
        choices = random.sample(range(VOCABULARY - 4), 4)
        with torch.no_grad():
            logits = live(torch.tensor([[4 + word for word in words]])).logits[0, -1]
        answer = max(range(4), key=lambda i: float(logits[4 + choices[i]]))
        lines.append(
            {
                "prompt": " ".join(f"w{word}" for word in words),
                "choices": [f"w{choice}" for choice in choices],
                "answer": answer,
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    task = f"""
task: {name}
custom_dataset: !function loader.load
dataset_kwargs: {{file: {name}.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
num_fewshot: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
    (folder / f"{name}.yaml").write_text(task, encoding="utf-8")
