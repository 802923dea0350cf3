"""Merge the same deltas in several ways, in memory, and compare the merges.

Every row is a method with a density. Its weight, or for combinations by inputs its lambda, is
chosen on dev items, unless AdaMerging learns weights or factors; the table shows test items. Rows
that are finished are kept in a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from mergekit.merge_methods import merge_state_dicts
from tqdm import tqdm

from dppa_mergekit import method_table

Weights: TypeAlias = dict[str, torch.Tensor]
Part: TypeAlias = Literal["dev", "test"]

Result: TypeAlias = dict[str, object]
"""The measurements of one row, as plain data; `chosen` is its weight or lambda, or `learned`."""


@dataclass(frozen=True)
class Learning:
    """How AdaMerging learns.

    Attributes:
        granularity: What has numbers of its own.
        objective: What is minimized.
    """

    granularity: str = "block"
    objective: str = "distill"

    @property
    def label(self) -> str:
        """The end of a row's name, which leaves out blocks and the divergence alone."""
        own = [
            value
            for value, usual in ((self.granularity, "block"), (self.objective, "distill"))
            if value != usual
        ]
        return ", ".join(["AdaMerging", *own])


@dataclass(frozen=True)
class Row:
    """A way to merge.

    Attributes:
        method: The merge method.
        density: Density of every delta; None if the method has none.
        prompts: Prompts that every expert is observed on; None for none.
        amplify: Whether pruned linears get factors, for a combination by inputs.
        learned: What AdaMerging learns weights and factors by, or factors alone for a combination
            by inputs; None where it learns nothing.
    """

    method: str
    density: float | None = None
    prompts: int | None = None
    amplify: str = "auto"
    learned: Learning | None = None

    @property
    def by_inputs(self) -> bool:
        """Whether the deltas are combined by inputs."""
        return method_table.is_by_inputs(self.method)

    @property
    def label(self) -> str:
        """The name of the row."""
        parts = [self.method]
        if self.by_inputs:
            parts.append("data-free" if self.prompts is None else f"{self.prompts} prompts")
            parts += ["no factors"] if self.amplify == "none" else []
        parts += [self.learned.label] if self.learned else []
        return ", ".join(parts)

    @property
    def key(self) -> str:
        """A name that no other row has."""
        return f"{self.label}, density {self.density or 1:g}"


@dataclass(frozen=True)
class Contest:
    """The models that are merged, and how merges are judged.

    Attributes:
        models: Name of a model -> its weights; the base first, under the name `base`.
        observe: Returns expert -> the file of its activations, given the number of prompts.
        judge: Returns how good weights are on a part of the items, and what to keep of that.
        weights: Candidates for the weight that all models of a sum share.
        lambdas: Candidates for lambda of a combination by inputs.
        learn: Returns the merge of a row that AdaMerging learns; None if there are no such rows.
    """

    models: Mapping[str, Weights]
    observe: Callable[[int], Mapping[str, str]]
    judge: Callable[[Weights, Part], tuple[float, Result]]
    weights: Sequence[float]
    lambdas: Sequence[float]
    learn: Callable[[Row], Weights] | None = None

    def measure(self, row: Row) -> Result:
        """Choose a row's weight or lambda on dev; return it, and what is found on test."""
        if row.learned:
            assert self.learn is not None
            _, found = self.judge(self.learn(row), "test")
            return {"chosen": "learned", **found}
        values = self.lambdas if row.by_inputs else self.weights
        best = values[0]
        if len(values) > 1:
            best = max(values, key=lambda value: self.judge(self.merge(row, value), "dev")[0])
        _, found = self.judge(self.merge(row, best), "test")
        return {"chosen": best, **found}

    def merge(self, row: Row, value: float, shared: Mapping[str, object] | None = None) -> Weights:
        """Merge all experts with one weight, or with one lambda.

        Args:
            row: The way to merge.
            value: The weight or lambda.
            shared: More parameters of the merge.
        """
        names = [name for name in self.models if name != "base"]
        parameters: dict[str, object] = dict(shared or {})
        if row.density is not None:
            parameters["density"] = dict.fromkeys(names, row.density)
        if row.by_inputs:
            parameters["lambda"] = value
            parameters["amplify"] = row.amplify
            parameters["weight"] = dict.fromkeys(names, 1.0)
            if row.prompts is not None:
                observed = self.observe(row.prompts)
                parameters["activations"] = {name: observed[name] for name in names}
        else:
            parameters["weight"] = dict.fromkeys(names, value)
        if row.method == "ties":
            parameters["normalize"] = False  # a common weight would change nothing
        torch.manual_seed(0)
        merged: Weights = merge_state_dicts(
            dict(self.models), row.method, parameters=parameters, base="base"
        )
        return merged


def measure_missing(contest: Contest, rows: Sequence[Row], kept: Path, title: str) -> None:
    """Measure the rows that a file does not have yet, and add each to it."""
    missing = [row for row in rows if row.key not in read_results(kept)]
    for row in tqdm(missing, desc=title):
        found = contest.measure(row)
        # Another process may have added rows meanwhile.
        results = {**read_results(kept), row.key: found}
        kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def read_results(path: Path) -> dict[str, Result]:
    """Return row -> its measurements."""
    results: dict[str, Result] = {}
    if path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
    return results


def labelled(rows: Sequence[Row], densities: Sequence[float]) -> Iterator[tuple[str, list[str]]]:
    """Yield every label with the keys of its rows: without density, and of each density."""
    for label in dict.fromkeys(row.label for row in rows):
        of_label = {row.density: row.key for row in rows if row.label == label}
        yield label, [of_label.get(density, "") for density in (None, *densities)]
