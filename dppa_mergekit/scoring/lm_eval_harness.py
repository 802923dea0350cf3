"""Scoring by lm-evaluation-harness: load the tasks once, score live models item by item.

Written against lm-eval 0.4.13. Needs the extra `search`.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from dppa_mergekit.errors import DppaError, first_line
from dppa_mergekit.recipes.yaml_text import YAML_ERRORS, describe_yaml_error
from dppa_mergekit.scoring.ratios import Score, Scores
from dppa_mergekit.scoring.tasks import Metrics, TasksError, TasksFile

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)

FEWSHOT_SEED = 1234
"""The default of lm-eval."""

KNOWN_TESTS = frozenset(
    {
        "gsm8k",
        "gsm8k_cot",
        "minerva_math",
        "hendrycks_math",
        "mathqa",
        "arc_challenge",
        "arc_easy",
        "hellaswag",
        "winogrande",
        "mmlu",
        "truthfulqa_mc1",
        "truthfulqa_mc2",
        "humaneval",
        "mbpp",
        "boolq",
        "piqa",
        "openbookqa",
        "lambada_openai",
        "ifeval",
        "bbh",
        "drop",
        "nq_open",
        "triviaqa",
        "pubmedqa",
        "medqa_4options",
    }
)
"""lm-eval tasks that score public benchmarks on the split that papers report."""


class Harness:
    """Scores live models on loaded tasks.

    Args:
        tasks: The tasks file; its settings hold for every task.
        metrics: The tasks to load, with their metrics.

    Raises:
        DppaError: lm-eval is not installed.
        TasksError: A task cannot be loaded or must not be run, or has no such metric.
    """

    def __init__(self, tasks: TasksFile, metrics: Metrics) -> None:
        self._settings = tasks
        self._metrics = dict(metrics)
        self._tasks = _load_tasks(tasks, metrics)
        for task, metric in metrics.items():
            self._check_metric(task, metric)
            self._configure(self._tasks[task])

    def item_count(self, task: str) -> int:
        """Return how many items of a task are used, within the limit."""
        number = len(self._tasks[task].eval_docs)
        limit = self._settings.limit
        return number if limit is None else min(limit, number)

    def score(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        items: Mapping[str, Sequence[int]],
    ) -> Scores:
        """Return the scores of a live model.

        Args:
            model: In evaluation mode, on its device.
            tokenizer: The model's tokenizer.
            items: Task -> indices of the items to score, at least one for each task.

        Raises:
            TasksError: A chat template is to be applied, and the tokenizer has none.
        """
        with quiet():
            language_model = self._language_model(model, tokenizer)
        return self.score_by(language_model, items)

    def score_by(self, language_model: TemplateLM, items: Mapping[str, Sequence[int]]) -> Scores:
        """Return the scores of one of lm-eval's models, whose chat template has been checked."""
        from lm_eval import evaluate

        self._reset_fewshot_seed(items)
        with quiet():
            results = evaluate(
                language_model,
                {"tasks": {task: self._tasks[task] for task in items}, "groups": {}},
                samples={task: sorted(chosen) for task, chosen in items.items()},
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=self._settings.apply_chat_template,
                fewshot_as_multiturn=self._settings.fewshot_as_multiturn,
                system_instruction=self._settings.system_instruction,
            )
        return {
            task: self._score(task, results["results"][task], results["samples"][task])
            for task in items
        }

    def prompts(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        items: Mapping[str, Sequence[int]],
    ) -> list[list[int]]:
        """Return the tokens of the prompts that items are scored with, without repetitions.

        Args:
            model: A live model; only its configuration is used.
            tokenizer: The model's tokenizer.
            items: Task -> indices of its items.

        Raises:
            TasksError: A chat template is to be applied, and the tokenizer has none.
        """
        self._reset_fewshot_seed(items)
        with quiet():
            language_model = self._language_model(model, tokenizer)
            texts: dict[str, None] = {}
            for task, chosen in items.items():
                loaded = self._tasks[task]
                templated = bool(self._settings.apply_chat_template)
                loaded.build_all_requests(
                    samples=sorted(chosen),
                    system_instruction=self._settings.system_instruction,
                    apply_chat_template=templated,
                    fewshot_as_multiturn=self._settings.fewshot_as_multiturn,
                    chat_template=language_model.apply_chat_template if templated else None,
                    tokenizer_name=language_model.tokenizer_name if templated else "",
                )
                texts.update((str(instance.args[0]), None) for instance in loaded.instances)
            return [list(language_model.tok_encode(text)) for text in texts]

    def _reset_fewshot_seed(self, tasks: Iterable[str]) -> None:
        """Give the same items the same few-shot examples in every call.

        lm-eval draws them from one stream of random numbers that goes on from call to call.
        """
        for task in tasks:
            self._tasks[task].set_fewshot_seed(FEWSHOT_SEED)

    def _language_model(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> HFLM:
        from lm_eval.models.huggingface import HFLM

        self.check_chat_template(tokenizer)
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=self._settings.batch_size)

    def check_chat_template(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse a tokenizer without a chat template, if one is to be applied.

        Raises:
            TasksError: It has none.
        """
        if self._settings.apply_chat_template:
            require_chat_template(tokenizer, tokenizer.name_or_path or "the model")

    def _score(
        self, task: str, result: Mapping[str, object], samples: Iterable[Mapping[str, object]]
    ) -> Score:
        """Return the value of the task's metric, with its items if it is their mean."""
        key = self._metrics[task]
        metric, _, chosen = key.partition(",")
        value = _number(result[key])
        items = [
            _number(sample[metric])
            for sample in samples
            if sample["filter"] == chosen and isinstance(sample.get(metric), (int, float))
        ]
        if not items or not _is_mean(self._tasks[task].aggregation()[metric]):
            return Score(value)
        return Score.of(items)

    def _check_metric(self, task: str, metric: str) -> None:
        """Refuse a metric that the task lacks or that falls with skill, and tasks that run code."""
        loaded = self._tasks[task]
        filters = [str(entry["name"]) for entry in loaded.config.filter_list or ()] or ["none"]
        known = [f"{name},{chosen}" for name in loaded.aggregation() for chosen in filters]
        if metric not in known:
            raise TasksError(
                f"Task {task} has no metric {metric!r}; it has {', '.join(sorted(known))}."
            )
        # None if neither the task nor lm-eval knows.
        if loaded.higher_is_better().get(metric.partition(",")[0]) is False:
            raise TasksError(
                f"Task {task}: lower values of {metric} are better; allowed is a metric whose "
                f"higher values are better."
            )
        if getattr(loaded, "UNSAFE_CODE", False):
            raise TasksError(
                f"Task {task} runs code that models write (unsafe_code), which is not supported."
            )

    def _configure(self, task: ConfigurableTask) -> None:
        """Apply the settings of the tasks file, as lm-eval's command line does."""
        shots = self._settings.num_fewshot
        own = task.get_config("num_fewshot")
        # As in lm-eval, a task's own 0 stays 0.
        if own is None or (shots is not None and own != 0):
            task.set_config("num_fewshot", shots or 0)
        if self._settings.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config("generation_kwargs", dict(self._settings.gen_kwargs), update=True)


def lm_eval_version() -> str:
    """Return the installed release of lm-eval; scores may differ between releases."""
    return version("lm_eval")


def require_chat_template(tokenizer: PreTrainedTokenizerBase, owner: str) -> None:
    """Refuse a tokenizer without the chat template that a tasks file wants to apply.

    Args:
        tokenizer: The tokenizer.
        owner: Whose it is, for the message.

    Raises:
        TasksError: It has none.
    """
    if not tokenizer.chat_template:
        raise TasksError(f"apply_chat_template: the tokenizer of {owner} has no chat template.")


def warn_of_public_tests(dev_tasks: Iterable[str]) -> None:
    """Warn of dev tasks that are public test splits, which nothing should be tuned on."""
    for task in dev_tasks:
        if task in KNOWN_TESTS or task.startswith(("mmlu_", "bbh_")):
            LOG.warning(
                "Dev task %s is a public test split; after tuning on it, its score says little.",
                task,
            )


def _load_tasks(tasks: TasksFile, names: Collection[str]) -> dict[str, ConfigurableTask]:
    """Load tasks by lm-eval.

    Raises:
        DppaError: lm-eval is not installed.
        TasksError: lm-eval has no such task, or cannot load it.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise DppaError(
            "Scoring needs lm-evaluation-harness: pip install 'dppa-mergekit[search]'."
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(
        include_path=None if tasks.include_path is None else str(tasks.include_path),
        include_defaults=tasks.include_defaults,
    )
    for task in names:
        if task in manager.all_groups:
            raise TasksError(f"{task} is a group of lm-eval's; allowed are the tasks in it.")
        if task not in manager.all_subtasks:
            raise TasksError(_explain_unknown(task, manager.all_subtasks, tasks))
    loaded: dict[str, ConfigurableTask] = {}
    for task in names:
        try:
            with quiet():
                loaded[task] = manager.load([task])["tasks"][task]
        # lm-eval and datasets raise many types for a faulty task file or missing data.
        except Exception as error:
            raise TasksError(f"Task {task} cannot be loaded: {first_line(error)}.") from error
    return loaded


def _is_mean(aggregation: Callable[[list[float]], object]) -> bool:
    """Return whether an aggregation is the mean, judged by its value for three numbers."""
    try:
        return abs(_number(aggregation([0.0, 0.0, 1.0])) - 1 / 3) < 1e-6
    # An aggregation of something other than numbers may raise anything.
    except Exception:
        return False


def _number(value: object) -> float:
    """Convert a metric's value, which may be a NumPy scalar."""
    return float(value)  # type: ignore[arg-type]


def _explain_unknown(task: str, known: Sequence[str], tasks: TasksFile) -> str:
    """Return why lm-eval knows no such task; it skips without a word what it cannot read."""
    folder = tasks.include_path
    near = difflib.get_close_matches(task, known, 3)
    if near:
        reasons = [f"did you mean {' or '.join(near)}?"]
    elif folder is None:
        reasons = ["the tasks file has no include_path, the folder of your own tasks."]
    else:
        reasons = [f"no file in {folder} (include_path) that ends in .yaml defines it."]
    if folder is not None:
        reasons += _find_broken_files(folder)
    if not tasks.include_defaults and not near:
        reasons.append("The tasks that come with lm-eval need include_defaults: true.")
    return f"lm-eval knows no task {task}: {' '.join(reasons)}"


def _find_broken_files(folder: Path) -> Iterator[str]:
    """Yield a sentence on each task file that cannot be read as YAML."""
    for path in sorted(folder.rglob("*.yaml")):
        try:
            # Composed only: its tags, as !function, are lm-eval's own.
            yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
        except OSError as error:
            yield f"{path} cannot be read: {error}."
        except YAML_ERRORS as error:
            yield f"{path} is not YAML: {describe_yaml_error(error)}."


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide lm-eval's progress bars and warnings, of which there are many for each model."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield
