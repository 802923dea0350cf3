"""From models and a tasks file to tables of their scores: what `mergekit-dppa evaluate` does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from dppa_mergekit.checks.checkpoints import of_folder
from dppa_mergekit.curves import draw_evaluation, is_installed
from dppa_mergekit.errors import CheckpointError, DppaError
from dppa_mergekit.evaluation import Evaluation, as_markdown, as_plain
from dppa_mergekit.harness import Harness
from dppa_mergekit.recipes import Recipe, identity
from dppa_mergekit.records import read_records, write_record
from dppa_mergekit.resident import load_model, merged
from dppa_mergekit.scores import Score, Scores
from dppa_mergekit.tasks import Part, TasksFile, check_dense
from dppa_mergekit.unmerged import Placement, Unmerged

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "evaluation"
"""The name of what is written, before its ending."""


@dataclass(frozen=True)
class Evaluating:
    """An evaluation of several models.

    Attributes:
        models: Fine-tuned ones, bases and merges, by folder or name.
        recipes: Merges that are made for this and not kept.
        tasks: By what they are scored.
        part: On which tasks.
        output: A folder for the tables; None for none.
        placement: Where and how models are held.
        workspace: A folder on a disk that has room for a merged model.
    """

    models: Sequence[str]
    recipes: Sequence[Recipe]
    tasks: TasksFile
    part: Part
    output: Path | None
    placement: Placement
    workspace: Path

    def run(self) -> Evaluation:
        """Score every model on all tasks, and each domain's fine-tuned model on its own.

        Raises:
            DppaError: Whatever the user can mend; before the first model is loaded where possible.
        """
        domains = {name: list(each.of(self.part)) for name, each in self.tasks.domains.items()}
        guard = list(self.tasks.guard.of(self.part))
        for name, tasks in domains.items():
            if not tasks:
                raise DppaError(f"Domain {name} has no {self.part} tasks.")
        if not domains:
            raise DppaError("The tasks file has no domains, and ratios need some.")
        for model in [*self.models, *(each.model for each in self.tasks.domains.values())]:
            _refuse_broken(Unmerged(model, self.placement).folder(), model)
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
        harness = Harness(self.tasks, self.tasks.metrics(self.part))
        every = [*(task for tasks in domains.values() for task in tasks), *guard]
        rows: dict[str, Scores] = {}
        dense: dict[str, Score] = {}
        teachers = {name: each.model for name, each in self.tasks.domains.items()}
        whole = [*self.models, *(recipe.origin for recipe in self.recipes)]
        with tqdm(total=len(whole) + len(teachers), desc="evaluate", unit="model", delay=2) as bar:
            for model in self.models:
                rows[model] = self._scored(harness, Unmerged(model, self.placement).load(), every)
                bar.update()
            for recipe in self.recipes:
                rows[recipe.origin] = self._merged(harness, recipe, every)
                bar.update()
            for name, model in teachers.items():
                known = [row for row in self.models if identity(row) == identity(model)]
                found = (
                    rows[known[0]]
                    if known
                    else self._scored(
                        harness, Unmerged(model, self.placement).load(), domains[name]
                    )
                )
                dense.update((task, found[task]) for task in domains[name])
                bar.update()
        check_dense({task: score.value for task, score in dense.items()})
        evaluation = Evaluation(domains, guard, dense, rows, frozenset(self._tuned_on(every)))
        if self.output is not None:
            self._write(self.output, evaluation)
        return evaluation

    def _merged(self, harness: Harness, recipe: Recipe, tasks: Sequence[str]) -> Scores:
        where = self.placement
        with merged(recipe, self.workspace, None, where.trust_remote_code) as folder:
            live = load_model(folder, where.device, where.dtype, where.trust_remote_code)
        return self._scored(harness, live, tasks)

    def _scored(
        self,
        harness: Harness,
        live: tuple[PreTrainedModel, PreTrainedTokenizerBase],
        tasks: Sequence[str],
    ) -> Scores:
        return harness.score(*live, {task: range(harness.items(task)) for task in tasks})

    def _tuned_on(self, tasks: Sequence[str]) -> Iterator[str]:
        """The tasks that a search, or AdaMerging, of one of these models or recipes has seen."""
        folders = [Path(model).resolve().parent for model in self.models if Path(model).exists()]
        folders += [Path(recipe.origin).resolve().parent for recipe in self.recipes]
        seen = {task for folder in set(folders) for task in _dev_tasks(read_records(folder))}
        yield from (task for task in tasks if task in seen)

    def _write(self, folder: Path, found: Evaluation) -> None:
        plain = {"part": self.part, **as_plain(found)}
        path = folder / f"{FILE}.json"
        path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(as_markdown(found), encoding="utf-8")
        if is_installed():
            draw_evaluation(found, path.with_suffix(".png"))
        subject: dict[str, object] = {
            "models": list(self.models),
            "recipes": {recipe.origin: recipe.content for recipe in self.recipes},
            "tasks": self.tasks.model_dump(mode="json"),
            "part": self.part,
            "dtype": str(self.placement.dtype),
        }
        write_record(path, "evaluate", subject, [plain])


def _refuse_broken(folder: Path, model: str) -> None:
    """Refuse a folder that is not whole, or holds two merges: its scores would say nothing."""
    _, found = of_folder(folder, model)
    for each in found:
        if each.severity == "error":
            raise CheckpointError(f"{model}: {each.sentence}")


def _dev_tasks(records: Mapping[str, object]) -> Iterator[str]:
    """The dev tasks of the searches and learnings in run records."""
    for record in records.values():
        if not isinstance(record, dict) or record.get("command") not in ("search", "adamerge"):
            continue
        tasks = record.get("tasks")
        if not isinstance(tasks, dict):
            continue
        for domain in (*tasks["domains"].values(), tasks.get("guard") or {}):
            yield from domain.get("dev", ())
