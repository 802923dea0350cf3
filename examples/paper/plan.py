"""What an experiment measures: a plan, and the subject that it is carried out on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, TypeAlias

Plain: TypeAlias = "dict[str, object]"
"""The content of a YAML or JSON file."""

Domains: TypeAlias = tuple[str, ...]
"""A set of domains whose models are merged."""

Way: TypeAlias = Literal["given", "shared", "search", "model", "block", "linear", "partition"]
"""How the weights of a merge are found. `given`: the merge is as it starts. `search`: a weight for
each model, `shared`: one for all. The others are granularities of AdaMerging."""

LEARNED: tuple[Way, ...] = ("model", "block", "linear", "partition")
"""The ways that are granularities of AdaMerging, from the coarsest to the finest."""


@dataclass(frozen=True)
class Merging:
    """A way to merge.

    Attributes:
        method: The merge method.
        rate: The pruning rate of every delta, in percent; 0 where nothing is pruned.
        way: How its weights are found or, of a combination by inputs that is learned, its factors.
        observed: Whether a combination by inputs is given activations; no other method takes them.
    """

    method: str
    rate: int
    way: Way
    observed: bool = True

    @property
    def name(self) -> str:
        """Its name among the results, and that of its recipe in the folder of its method."""
        return f"{self.method}{'' if self.observed else '_data_free'}_{self.rate}_{self.way}"


def combine(
    methods: Sequence[str], rates: Sequence[int], ways: Sequence[Way], observed: bool = True
) -> Iterator[Merging]:
    """Yield the mergings of all combinations."""
    for method, rate, way in product(methods, rates, ways):
        yield Merging(method, rate, way, observed)


@dataclass(frozen=True)
class Plan:
    """What is measured, and how much of it.

    Attributes:
        rates: Pruning rates, in percent, of single models without factors.
        beyond: Pruning rates above the paper's highest, which show where methods fail.
        searched: Pruning rates at which factors are searched.
        mergings: Set of domains -> the ways in which it is merged.
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
    mergings: Mapping[Domains, tuple[Merging, ...]]
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
    """A base model and its fine-tuned models.

    Attributes:
        name: Name of the subject.
        folder: The folder of everything that is measured.
        base: Path of the base model, relative to that folder.
        tasks: Content of the tasks file; the folder of a domain's model has the domain's name.
        prompts: Domain -> prompts of its training, on which its model's inputs are observed.
        made: How the models were made: measurements of other models are refused in the folder.
        device: Where models are evaluated: cpu, cuda, ...
    """

    name: str
    folder: Path
    base: str
    tasks: Plain
    prompts: Mapping[str, Sequence[str]]
    made: Plain
    device: str = "cpu"
