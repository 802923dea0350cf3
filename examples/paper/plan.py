"""What an experiment measures: a plan, and the subject that it is carried out on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Plain: TypeAlias = "dict[str, object]"
"""The content of a YAML or JSON file."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and how much of it.

    A folder of measurements keeps the names and values of these fields in `plan.json`, and a plan
    that differs from them is refused there.

    Attributes:
        rates: Pruning rates, in percent, of single models without factors.
        beyond: Pruning rates above the paper's highest, which show where methods fail.
        searched: Pruning rates at which factors are searched and merges are made.
        sets: The sets of domains that are merged.
        ways: How the weights of merges are found: `adamerge`, a `search` for each model, or a
            search of one weight that all models share (`shared`).
        others: mergekit's methods for comparison, each with the way its weights are found.
        factors: Factors of the 90 partition for curves of score against factor, beside 1, which is
            DP; empty for no curves.
        candidates: Candidates of a search of factors, for each domain.
        weighings: Candidates of a search of weights.
        steps: Steps of AdaMerging.
        states: States of AdaMerging that are scored; the best one is taken.
        learning_rate: The largest move of a weight in a step of AdaMerging.
        dev_items: Items of each dev task.
        test_items: Items of each test task; None for all.
    """

    rates: tuple[int, ...]
    beyond: tuple[int, ...]
    searched: tuple[int, ...]
    sets: tuple[tuple[str, ...], ...]
    ways: tuple[str, ...]
    others: tuple[tuple[str, str], ...]
    factors: tuple[float, ...]
    candidates: int
    weighings: int
    steps: int
    states: int
    learning_rate: float
    dev_items: int
    test_items: int | None = None


@dataclass(frozen=True)
class Subject:
    """A base model and its fine-tuned models, which lie in the subject's folder.

    Attributes:
        name: Name of the subject.
        folder: The folder of its models and of everything that is measured.
        base: Path of the base model, relative to that folder.
        tasks: Content of the tasks file; the model of a domain has the domain's name.
        made: The settings of the training that made the models.
        device: Where models are evaluated: cpu, cuda, ...
    """

    name: str
    folder: Path
    base: str
    tasks: Plain
    made: Plain
    device: str = "cpu"
