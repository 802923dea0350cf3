"""Score a model on the tasks of `tasks.yml` with lm-evaluation-harness, and compare the scores.

In:  a checkpoint's folder, or a model in memory with its tokenizer.
Out: one score from 0 to 1 per task, and Domain-Ratios in percent (arXiv 2403.02799, eqs. 7, 8).
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lm_eval import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerFast

TASKS_FILE = Path(__file__).resolve().parent / "tasks.yml"
GENERAL = "general"

Scores = dict[str, float]
"""Task name without its part (`addition`, not `addition_dev`) -> score from 0 to 1."""


@dataclass(frozen=True)
class Scorer:
    """Scores models on one part of every task.

    Attributes:
        part: `dev` or `test`.
        domains: Domain -> its tasks; the guard's task is under `general`.
        limit: Number of items per task, counted from the first; None for all.
    """

    part: str
    domains: dict[str, list[str]]
    limit: int | None
    _metrics: dict[str, str]
    _tasks: dict[str, Any]
    _batch_size: int

    @classmethod
    def load(cls, part: str, limit: int | None = None) -> Scorer:
        """Read the tasks file and load the tasks of one part."""
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        settings = yaml.safe_load(TASKS_FILE.read_text(encoding="utf-8"))
        parts = {name: domain[part] for name, domain in settings["domains"].items()}
        parts[GENERAL] = settings["guard"][part]
        metrics = {task: metric for tasks in parts.values() for task, metric in tasks.items()}
        manager = TaskManager(
            include_path=str(TASKS_FILE.parent / settings["include_path"]),
            include_defaults=settings["include_defaults"],
        )
        return cls(
            part=part,
            domains={
                name: [task.removesuffix(f"_{part}") for task in tasks]
                for name, tasks in parts.items()
            },
            limit=limit,
            _metrics=metrics,
            _tasks=manager.load(list(metrics)),
            _batch_size=settings["batch_size"],
        )

    def score(self, model: PreTrainedModel | Path, tokenizer: PreTrainedTokenizerFast) -> Scores:
        """Score a model in memory or a checkpoint in float32 on the CPU."""
        pretrained = str(model) if isinstance(model, Path) else model
        language_model = HFLM(
            pretrained=pretrained,
            tokenizer=tokenizer,
            backend="causal",
            device="cpu",
            dtype="float32",
            batch_size=self._batch_size,
        )
        with contextlib.redirect_stderr(io.StringIO()):  # hides a progress bar per task and model
            results = evaluate(
                language_model, self._tasks, limit=self.limit, log_samples=False, bootstrap_iters=0
            )["results"]
        return {
            task.removesuffix(f"_{self.part}"): float(results[task][metric])
            for task, metric in self._metrics.items()
        }


def compute_domain_ratio(scores: Scores, fine_tuned_scores: Scores, tasks: list[str]) -> float:
    """Return the geometric mean over tasks of score over fine-tuned score, in percent.

    Args:
        scores: Scores of the model to rate.
        fine_tuned_scores: Scores of the domain's fine-tuned model.
        tasks: The tasks of the domain.

    Returns:
        The Domain-Ratio, or NaN if the fine-tuned model scores 0 on a task.
    """
    if not all(fine_tuned_scores[task] for task in tasks):
        return math.nan
    ratios = [scores[task] / fine_tuned_scores[task] for task in tasks]
    return 100 * math.prod(ratios) ** (1 / len(ratios))
