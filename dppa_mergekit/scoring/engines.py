"""Engines: what runs models while lm-eval scores them, transformers or vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from dppa_mergekit.live.loading import load_model
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.scoring.lm_eval_harness import Harness
from dppa_mergekit.scoring.ratios import Items, Scores
from dppa_mergekit.scoring.tasks import TasksFile
from dppa_mergekit.scoring.vllm_engine import VllmEngine, vllm_version

EngineName = Literal["transformers", "vllm"]
"""transformers scores live models, vllm folders."""


def describe_engine(name: EngineName) -> dict[str, str | None]:
    """Return an engine's name and its release, on which scores depend, for a record of a run.

    Raises:
        DppaError: vLLM is not installed.
    """
    return {"engine": name, "vllm": vllm_version() if name == "vllm" else None}


class FolderScorer(Protocol):
    """Scores models that lie in folders."""

    def item_count(self, task: str) -> int:
        """Return how many items of a task are used; 0 where it is scored as a whole."""
        ...

    def run(self, folder: Path, items: Items, tokenizer_folder: Path | None = None) -> Scores:
        """Return the scores of a model on items.

        Args:
            folder: The folder of the model.
            items: Task -> indices of the items to score.
            tokenizer_folder: The folder of its tokenizer; the same where None.
        """
        ...


class TransformersEngine:
    """Scores folders by transformers; see `FolderScorer`.

    Args:
        harness: The loaded tasks.
        placement: Where and how models are held.
    """

    def __init__(self, harness: Harness, placement: Placement) -> None:
        self._harness = harness
        self._placement = placement

    def item_count(self, task: str) -> int:
        """Return how many items of a task are used, within the limit."""
        return self._harness.item_count(task)

    def run(self, folder: Path, items: Items, tokenizer_folder: Path | None = None) -> Scores:
        """Return the scores of a model on items; see `FolderScorer`.

        Raises:
            DppaError: transformers cannot load the model, or it does not fit the device.
        """
        live = load_model(folder, self._placement, tokenizer_folder)
        return self._harness.score(*live, items)


def make_engine(
    name: EngineName, harness: Harness, placement: Placement, tasks: TasksFile
) -> FolderScorer:
    """Return an engine.

    Args:
        name: The engine.
        harness: The loaded tasks.
        placement: Where and how models are held.
        tasks: The tasks file, which may have arguments for vLLM.

    Raises:
        DppaError: vLLM is not installed.
    """
    if name == "vllm":
        return VllmEngine(harness, placement, tasks.vllm_args)
    return TransformersEngine(harness, placement)
