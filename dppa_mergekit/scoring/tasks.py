"""The tasks file: by what models are scored, shared by search, adamerge and evaluate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pydantic
import yaml

from dppa_mergekit.errors import DppaError


class TasksError(DppaError):
    """The tasks file, or a task that it names, cannot be used."""


Metrics = dict[str, str]
"""lm-evaluation-harness task -> metric and filter: {"gsm8k": "exact_match,strict-match"}."""

Part = Literal["dev", "test"]


def check_dense(dense: Mapping[str, float]) -> None:
    """Refuse tasks on which an unmerged model scores nothing.

    Args:
        dense: Task -> score of the fine-tuned model of its domain, or, of a guard, of the base.

    Raises:
        TasksError: A score is not above 0.
    """
    for task, value in dense.items():
        if not value > 0:
            raise TasksError(
                f"Task {task}: the unmerged model itself scores {value:g}, and a ratio to that "
                f"says nothing: leave the task out, or mend it."
            )


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Parts(_Strict):
    """Tasks by what they may be used for.

    Attributes:
        dev: What a search may see.
        test: What is reported.
    """

    dev: Metrics = {}
    test: Metrics = {}

    def of(self, part: Part) -> Metrics:
        """The tasks of one part."""
        return self.dev if part == "dev" else self.test


class Domain(Parts):
    """The tasks of one domain.

    Attributes:
        model: The domain's fine-tuned model, as the recipe names it.
    """

    model: str


class TasksFile(_Strict):
    """A tasks file.

    Attributes:
        include_path: Folder of lm-eval task YAMLs; from the file's own folder on.
        include_defaults: Whether lm-eval's own tasks are loaded too.
        batch_size: Of the evaluation: a number, or "auto".
        limit: Items for each task and evaluation; all where None.
        num_fewshot: As lm-eval has it; the tasks' own where None.
        apply_chat_template: As lm-eval has it, as the next three.
        fewshot_as_multiturn: Whether few-shot examples are turns of a conversation.
        system_instruction: What comes before the prompt.
        gen_kwargs: Changes to the tasks' own generation settings.
        domains: By name, in order.
        guard: What the base can do and a merge must not lose.
    """

    include_path: Path | None = None
    include_defaults: bool = False
    batch_size: pydantic.PositiveInt | Literal["auto"] = 1
    limit: pydantic.PositiveInt | None = None
    num_fewshot: pydantic.NonNegativeInt | None = None
    apply_chat_template: bool | str = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    gen_kwargs: dict[str, pydantic.JsonValue] | None = None
    domains: dict[str, Domain]
    guard: Parts = Parts()

    def metrics(self, part: Part, guard: bool = True) -> Metrics:
        """Task -> metric, of all domains and, if it is wanted, of the guard."""
        parts = [domain.of(part) for domain in self.domains.values()]
        if guard:
            parts.append(self.guard.of(part))
        return {task: metric for each in parts for task, metric in each.items()}

    @classmethod
    def read(cls, path: Path) -> TasksFile:
        """Read a tasks file.

        Raises:
            TasksError: It cannot be read, holds what is not allowed, or uses one task twice.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            tasks = cls.model_validate(content)
        except (OSError, UnicodeDecodeError) as error:
            raise TasksError(f"{path} cannot be read: {error}.") from error
        except yaml.YAMLError as error:
            raise TasksError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise TasksError(f"{path}: {place or 'the file'}: {first['msg']}.") from error
        for name in tasks.domains:
            if not name or name == "guard" or set(name) & set("/\\\0"):
                raise TasksError(
                    f"{path}: {name!r} is no name of a domain, after which files are named: "
                    f"allowed is a name without / and \\, and not guard."
                )
        tasks._refuse_repeated(path)
        if tasks.include_path is not None:
            included = path.parent / tasks.include_path
            if not included.is_dir():
                raise TasksError(f"{path}: include_path {tasks.include_path} is not a folder.")
            tasks = tasks.model_copy(update={"include_path": included})
        return tasks

    def _refuse_repeated(self, path: Path) -> None:
        seen: dict[str, str] = {}
        named = {**self.domains, "guard": self.guard}
        for name, parts in named.items():
            for part, tasks in (("dev", parts.dev), ("test", parts.test)):
                for task in tasks:
                    place = f"{name}.{part}"
                    if task in seen:
                        raise TasksError(
                            f"{path}: task {task} is under {seen[task]} and under {place}; a task "
                            f"belongs to one domain and one part."
                        )
                    seen[task] = place


def folder_hash(folder: Path | None) -> str | None:
    """Of the contents of a folder of tasks."""
    if folder is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
