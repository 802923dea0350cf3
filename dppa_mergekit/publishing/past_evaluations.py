"""What run records say of evaluations: which one of some weights is the last, and what it found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import pydantic

from dppa_mergekit.live.source_model import fingerprint
from dppa_mergekit.publishing.model_card import Measured, Measurements
from dppa_mergekit.recipes import identity
from dppa_mergekit.scoring.ratios import Estimate
from dppa_mergekit.storage.run_record import read_records


@dataclass(frozen=True)
class RecordedModel:
    """What a record says of one model.

    Attributes:
        scores: Task -> score.
        domain_ratios: Domain -> Domain-Ratio in percent.
    """

    scores: Mapping[str, Estimate]
    domain_ratios: Mapping[str, Estimate]


@dataclass(frozen=True)
class RecordedTables:
    """What a record says of the models.

    Attributes:
        tuned_on: As an Evaluation has it.
        models: By name.
    """

    tuned_on: Sequence[str]
    models: Mapping[str, RecordedModel]


@dataclass(frozen=True)
class RecordedTasks:
    """What a record says of the tasks.

    Attributes:
        limit: Items of each that were used; None for all.
    """

    limit: int | None


@dataclass(frozen=True)
class Recorded:
    """The record of an evaluation.

    Attributes:
        command: By which it was made.
        time: When.
        part: Of the tasks.
        checkpoints: Model -> the fingerprint of its folder, when it was loaded.
        tasks: By what models were scored.
        results: The tables.
    """

    command: Literal["evaluate"]
    time: datetime
    part: str
    checkpoints: Mapping[str, str]
    tasks: RecordedTasks
    results: tuple[RecordedTables]

    @classmethod
    def of(cls, record: object) -> Recorded | None:
        """A run record as one of an evaluation; None where it is none, or lacks a part of it."""
        try:
            return pydantic.TypeAdapter(cls).validate_python(record)
        except pydantic.ValidationError:
            return None


def measured_last(folder: Path, places: Iterable[Path]) -> tuple[Measurements, dict[Path, str]]:
    """What `evaluate` measured last of the weights in a folder on test tasks.

    Args:
        folder: Of the model.
        places: Folders in which records may be.

    Returns:
        What was measured, and place -> why what was recorded there of this folder is left out.
    """
    state = fingerprint(folder, dated=False)
    found: dict[Path, tuple[datetime, Measurements]] = {}
    left: dict[Path, str] = {}
    for place in places:
        for record in read_records(place).values():
            evaluated = Recorded.of(record)
            measured = None if evaluated is None else _measured(evaluated, state)
            if evaluated is None or measured is None:
                if _is_of(record, folder):
                    left[place] = _why_not(evaluated, folder)
            elif evaluated.part != "test":
                left[place] = f"is of the {evaluated.part} tasks"
            else:
                found[place] = evaluated.time, measured
    newest = max(found, key=lambda place: found[place][0], default=None)
    left.update({place: "is older than another" for place in found if place != newest})
    return (Measurements() if newest is None else found[newest][1]), left


def _measured(evaluated: Recorded, state: str) -> Measurements | None:
    """What an evaluation says of the model of a fingerprint; None where it is not in it."""
    (tables,) = evaluated.results
    for name, model in tables.models.items():
        if evaluated.checkpoints.get(name) == state:
            scores = [
                Measured(task, score.value, score.error, task in tables.tuned_on)
                for task, score in model.scores.items()
            ]
            ratios = {domain: ratio.value for domain, ratio in model.domain_ratios.items()}
            return Measurements(scores, ratios, evaluated.tasks.limit)
    return None


def _is_of(record: object, folder: Path) -> bool:
    """Whether a record is of an evaluation that was asked of a folder, whatever was in it."""
    if not isinstance(record, dict) or record.get("command") != "evaluate":
        return False
    models = record.get("models")
    return isinstance(models, list) and identity(str(folder)) in map(identity, models)


def _why_not(evaluated: Recorded | None, folder: Path) -> str:
    """Why an evaluation that was asked of a folder says nothing of what is in it."""
    if evaluated is None:
        return "does not say of which weights it is"
    (tables,) = evaluated.results
    if identity(str(folder)) not in map(identity, tables.models):
        return "ended before this model's turn"
    return "is of other weights"
