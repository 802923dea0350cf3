"""The scores of a merged folder, from the run records of past evaluations."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import pydantic

from dppa_mergekit.live.source_model import fingerprint
from dppa_mergekit.publishing.model_card import CardScore, Measurements
from dppa_mergekit.recipes.references import identity
from dppa_mergekit.scoring.ratios import Estimate
from dppa_mergekit.storage.run_record import read_records

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordedModel:
    """The results of one model in a record.

    Attributes:
        scores: Task -> score.
        domain_ratios: Domain -> Domain-Ratio in percent.
    """

    scores: Mapping[str, Estimate]
    domain_ratios: Mapping[str, Estimate]


@dataclass(frozen=True)
class RecordedTables:
    """The results of all models in a record.

    Attributes:
        tuned_on: Tasks by which factors or weights were chosen.
        models: Model -> its results.
    """

    tuned_on: Sequence[str]
    models: Mapping[str, RecordedModel]


@dataclass(frozen=True)
class RecordedParts:
    """Tasks in a record.

    Attributes:
        test: Task -> its metric and filter.
    """

    test: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedTasks:
    """The tasks in a record.

    Attributes:
        limit: The number of items used of each task; None for all.
        include_path: The folder of the user's tasks.
        num_fewshot: The number of examples in each prompt; None for each task's own number.
        apply_chat_template: As in lm-eval.
        system_instruction: As in lm-eval.
        gen_kwargs: As in lm-eval.
        domains: Domain -> its tasks.
        guard: The tasks of the guard.
    """

    limit: int | None
    include_path: Path | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool | str = False
    system_instruction: str | None = None
    gen_kwargs: Mapping[str, pydantic.JsonValue] | None = None
    domains: Mapping[str, RecordedParts] = field(default_factory=dict)
    guard: RecordedParts = RecordedParts()

    @property
    def metrics(self) -> Mapping[str, str]:
        """Test task -> its metric and filter."""
        holders = [*self.domains.values(), self.guard]
        return {task: metric for held in holders for task, metric in held.test.items()}

    @property
    def setup(self) -> list[str]:
        """How the tasks were changed for all models, in words."""
        changes = {
            f"{self.num_fewshot}-shot": self.num_fewshot is not None,
            "chat template": self.apply_chat_template,
            "system instruction": self.system_instruction,
            "other generation settings": self.gen_kwargs,
        }
        return [change for change, is_made in changes.items() if is_made]

    def is_own(self, task: str) -> bool:
        """Return whether a task is one of the user's; also where their folder is gone."""
        if self.include_path is None:
            return False
        named = re.compile(rf"^task:\s*['\"]?{re.escape(task)}['\"]?\s*$", re.MULTILINE)
        return not self.include_path.is_dir() or any(
            named.search(path.read_text(encoding="utf-8"))
            for path in self.include_path.rglob("*.y*ml")
        )


@dataclass(frozen=True)
class RecordedEvaluation:
    """The run record of an evaluation.

    Attributes:
        command: The command that wrote it.
        time: When it was written.
        part: `dev` or `test`: which tasks were used.
        checkpoints: Model -> the fingerprint of its folder when it was loaded.
        tasks: The tasks.
        results: The results.
    """

    command: Literal["evaluate"]
    time: datetime
    part: str
    checkpoints: Mapping[str, str]
    tasks: RecordedTasks
    results: tuple[RecordedTables]

    @classmethod
    def of(cls, record: object) -> RecordedEvaluation | None:
        """Return a run record as an evaluation; None if it is another record or incomplete."""
        try:
            return pydantic.TypeAdapter(cls).validate_python(record)
        except pydantic.ValidationError:
            return None


def last_measurements(folder: Path, recipe_file: Path | None) -> Measurements:
    """Return the newest results of `evaluate` on test tasks for the weights in a folder.

    Records are looked for in the folder, beside it, in the folders beside it, and beside the
    recipe's file. A warning names each folder with an evaluation of this model that is left out.

    Args:
        folder: The folder of the merge.
        recipe_file: The file of its recipe; None if only the folder has it.
    """
    state = fingerprint(folder, dated=False)
    found: dict[Path, tuple[datetime, Measurements]] = {}
    ignored: dict[Path, str] = {}
    for source in _record_folders(folder, recipe_file):
        for record in read_records(source).values():
            evaluation = RecordedEvaluation.of(record)
            measurements = None if evaluation is None else _measurements(evaluation, state)
            if evaluation is None or measurements is None:
                if _is_of(record, folder):
                    ignored[source] = _why_not(evaluation, folder)
            elif evaluation.part != "test":
                ignored[source] = f"used the {evaluation.part} tasks"
            else:
                found[source] = evaluation.time, measurements
    newest = max(found, key=lambda source: found[source][0], default=None)
    ignored.update({source: "is older than another" for source in found if source != newest})
    for source, reason in ignored.items():
        LOG.warning("The evaluation in %s %s and is left out of the card.", source, reason)
    return Measurements() if newest is None else found[newest][1]


def _record_folders(folder: Path, recipe_file: Path | None) -> list[Path]:
    """Return the folders that may have records of a merged folder."""
    folder = folder.resolve()
    candidates = [folder, folder.parent, *sorted(folder.parent.iterdir())]
    if recipe_file is not None:
        candidates.append(recipe_file.resolve().parent)
    return [candidate for candidate in dict.fromkeys(candidates) if candidate.is_dir()]


def _measurements(evaluation: RecordedEvaluation, state: str) -> Measurements | None:
    """Return the results of the model with a fingerprint; None if it was not evaluated."""
    (tables,) = evaluation.results
    tasks = evaluation.tasks
    for name, model in tables.models.items():
        if evaluation.checkpoints.get(name) == state:
            scores = [
                CardScore(
                    task,
                    tasks.metrics.get(task, ""),
                    score.value,
                    score.error,
                    task in tables.tuned_on,
                    tasks.is_own(task),
                )
                for task, score in model.scores.items()
            ]
            ratios = {domain: ratio.value for domain, ratio in model.domain_ratios.items()}
            return Measurements(scores, ratios, tasks.limit, tasks.setup)
    return None


def _is_of(record: object, folder: Path) -> bool:
    """Return whether a record is of an evaluation of a folder, whatever weights it had then."""
    if not isinstance(record, dict) or record.get("command") != "evaluate":
        return False
    models = record.get("models")
    return isinstance(models, list) and identity(str(folder)) in map(identity, models)


def _why_not(evaluation: RecordedEvaluation | None, folder: Path) -> str:
    """Return why an evaluation of a folder has no results of its present weights."""
    if evaluation is None:
        return "does not say which weights it measured"
    (tables,) = evaluation.results
    if identity(str(folder)) not in map(identity, tables.models):
        return "ended before it scored this model"
    return "measured other weights"
