"""What a search reads and writes, for the tests of its command."""

import json
from collections.abc import Callable
from pathlib import Path

import yaml
from click.testing import Result

Command = Callable[..., Result]


def changed(saved: Path, tmp_path: Path, name: str, change: Callable[[dict], object]) -> Path:
    content = yaml.safe_load((saved / name).read_text(encoding="utf-8"))
    if name == "tasks.yml":
        content["include_path"] = str(saved / "tasks")
    change(content)
    path = tmp_path / f"changed_{name}"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def journal(tmp_path: Path) -> list[dict]:
    text = (tmp_path / "tuned.yml.journal.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def evaluated(saved: Path, model: Path, task: str) -> float:
    """The accuracy of a checkpoint by lm-eval's own entry point."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    scored = simple_evaluate(
        "hf",
        model_args={"pretrained": str(model)},
        tasks=[task],
        task_manager=TaskManager(include_path=str(saved / "tasks"), include_defaults=False),
        batch_size=8,
        device="cpu",
        bootstrap_iters=0,
    )
    return float(scored["results"][task]["acc,none"])


def weights_of(path: Path) -> list[float]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [each["parameters"]["weight"] for each in content["models"]]
