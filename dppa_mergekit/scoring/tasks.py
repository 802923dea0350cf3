"""The tasks file: the tasks that models are scored on, read by search, adamerge and evaluate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pydantic
import yaml

from dppa_mergekit.errors import DppaError
from dppa_mergekit.recipes.yaml_text import YAML_ERRORS, describe_yaml_error


class TasksError(DppaError):
    """The tasks file, or a task that it names, cannot be used."""


Metrics = dict[str, str]
"""lm-evaluation-harness task -> metric and filter: {"gsm8k": "exact_match,strict-match"}."""

Part = Literal["dev", "test"]
"""The tasks that a search may see, or those that results are reported on."""

GUARD = "guard"
"""The key of the guard; no domain may have this name."""


def check_fine_tuned_scores(fine_tuned_scores: Mapping[str, float]) -> None:
    """Refuse scores to which no ratio can be taken.

    Args:
        fine_tuned_scores: Task -> score of its domain's fine-tuned model, or, of a guard task, of
            the base model.

    Raises:
        TasksError: A score is 0, negative or NaN.
    """
    for task, value in fine_tuned_scores.items():
        if not value > 0:
            raise TasksError(
                f"Task {task}: the model before merging scores {value:g}, but ratios to its score "
                f"need one above 0; remove the task or correct it."
            )


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Parts(_Strict):
    """Tasks in two parts.

    Attributes:
        dev: The tasks that a search may see.
        test: The tasks that results are reported on.
    """

    dev: Metrics = {}
    test: Metrics = {}

    def of(self, part: Part) -> Metrics:
        """Return the tasks of one part."""
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
        include_path: Folder of lm-eval task YAMLs, relative to the tasks file.
        include_defaults: Whether lm-eval's own tasks are loaded too.
        batch_size: Items that lm-eval scores at once: a number, or "auto".
        limit: How many items of each task are used; None for all.
        num_fewshot: As in lm-eval; None for each task's own number.
        apply_chat_template: As in lm-eval.
        fewshot_as_multiturn: As in lm-eval: whether few-shot examples are turns of a conversation.
        system_instruction: As in lm-eval: text before the prompt.
        gen_kwargs: As in lm-eval: changes to the tasks' own generation settings.
        vllm_args: For `--engine vllm`: arguments of vLLM's engine, as in lm-eval's `--model_args`.
        domains: Domain -> its tasks, in the order of the file.
        guard: Tasks that the base model can do and a merge must not lose.

    Example:
        >>> from dppa_mergekit import TasksFile
        >>> math = {"model": "./math", "dev": {"gsm8k": "exact_match,strict-match"}}
        >>> TasksFile(include_defaults=True, domains={"math": math}).metrics("dev")
        {'gsm8k': 'exact_match,strict-match'}
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
    vllm_args: dict[str, pydantic.JsonValue] = {}
    domains: dict[str, Domain]
    guard: Parts = Parts()

    def metrics(self, part: Part, guard: bool = True) -> Metrics:
        """Return task -> metric for one part of all domains and, if wanted, of the guard."""
        holders: list[Parts] = list(self.domains.values())
        if guard:
            holders.append(self.guard)
        return {task: metric for held in holders for task, metric in held.of(part).items()}

    def describe_dev(self, guard: bool = True) -> dict[str, object]:
        """Return the file as plain data, without test tasks and, unless wanted, without the guard.

        The folder of tasks is left out, too: `folder_hash` tells its content.
        """
        seen: dict[str, object] = self.model_dump(
            mode="json",
            exclude={
                "include_path": True,
                "domains": {"__all__": {"test"}},
                "guard": {"test"} if guard else True,
            },
        )
        return seen

    @classmethod
    def read(cls, path: Path) -> TasksFile:
        """Read a tasks file.

        Raises:
            TasksError: The file cannot be read or is not YAML, has a key or a value that is not
                allowed, or names a task twice.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise TasksError(f"{path} cannot be read: {error}.") from error
        except YAML_ERRORS as error:
            raise TasksError(f"{path} is not YAML: {describe_yaml_error(error)}.") from error
        try:
            tasks = cls.model_validate(content)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            problem = str(first["msg"])
            if first["type"] == "extra_forbidden":
                problem = (
                    f"there is no such key; allowed are {', '.join(_keys_beside(first['loc']))}"
                )
            raise TasksError(f"{path}: {key or 'the file'}: {problem}.") from error
        for name in tasks.domains:
            if not name or name == GUARD or set(name) & set("/\\\0"):
                raise TasksError(
                    f"{path}: {name!r} cannot name a domain, since files are named after it; "
                    f"allowed is any name but {GUARD}, without / or \\."
                )
        tasks._refuse_repeated(path)
        if tasks.include_path is not None:
            included = path.parent / tasks.include_path
            if not included.is_dir():
                raise TasksError(f"{path}: include_path {tasks.include_path} is not a folder.")
            tasks = tasks.model_copy(update={"include_path": included})
        return tasks

    def _refuse_repeated(self, path: Path) -> None:
        """Raise TasksError if a task stands in two domains or parts."""
        keys: dict[str, str] = {}
        holders = {**self.domains, GUARD: self.guard}
        for name, parts in holders.items():
            for part, tasks in (("dev", parts.dev), ("test", parts.test)):
                for task in tasks:
                    key = f"{name}.{part}"
                    if task in keys:
                        raise TasksError(
                            f"{path}: task {task} is under {keys[task]} and under {key}; a task "
                            f"belongs to one domain and one part."
                        )
                    keys[task] = key


def _keys_beside(place: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are allowed where an unknown one stands."""
    holders: dict[int, type[pydantic.BaseModel]] = {1: TasksFile, 2: Parts, 3: Domain}
    return list(holders[len(place)].model_fields)


def folder_hash(folder: Path | None) -> str | None:
    """Return the SHA-256 of all files in a folder of tasks; None for no folder."""
    if folder is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
