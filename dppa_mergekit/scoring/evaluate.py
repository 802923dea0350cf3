"""From models and a tasks file to tables of their scores: what `mergekit-dppa evaluate` does."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from dppa_mergekit.checks.checkpoint_files import of_folder
from dppa_mergekit.errors import CheckpointError, DppaError, first_line
from dppa_mergekit.live.loading import load_model
from dppa_mergekit.live.source_model import Placement, SourceModel, fingerprint
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.recipes import Recipe, identity
from dppa_mergekit.report.plot_style import is_installed
from dppa_mergekit.scoring.lm_eval_harness import Harness
from dppa_mergekit.scoring.plots import draw_evaluation
from dppa_mergekit.scoring.ratios import Score, Scores
from dppa_mergekit.scoring.tables import FILE, Evaluation, as_markdown, as_plain
from dppa_mergekit.scoring.tasks import Part, TasksError, TasksFile, check_dense
from dppa_mergekit.storage.output_files import check_output_folder, write_whole
from dppa_mergekit.storage.run_record import read_records, write_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)


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

        What is scored before an error, or before Ctrl-C, stays in the output folder.

        Raises:
            DppaError: Whatever the user can mend; before the first model is loaded where possible.
        """
        self._check()
        harness = Harness(self.tasks, self.tasks.metrics(self.part))
        if self.tasks.apply_chat_template:
            self._check_templates()
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
        states: dict[str, str] = {}
        kept: Evaluation | None = None
        try:
            for found in self._grown(harness, states):
                if self.output is not None:
                    self._write(self.output, found, states)
                    kept = found
        except BaseException:
            if kept is not None and kept.missing:
                LOG.warning(
                    "%s has what was scored so far; missing: %s.",
                    self.output,
                    ", ".join(kept.missing),
                )
            raise
        return found

    def _check(self) -> None:
        """Refuse what can be refused before anything is loaded."""
        if self.output is not None:
            check_output_folder(self.output, f"{FILE}.json")
        for name, tasks in self._domains.items():
            if not tasks:
                raise DppaError(f"Domain {name} has no {self.part} tasks.")
        if not self._domains:
            raise DppaError("The tasks file has no domains, and ratios need some.")
        for model in [*self.models, *(each.model for each in self.tasks.domains.values())]:
            _refuse_broken(SourceModel(model, self.placement).folder(), model)

    def _check_templates(self) -> None:
        """Refuse models without a chat template, through which prompts are to go."""
        from transformers import AutoTokenizer

        domains = self.tasks.domains.values()
        whose = {model: model for model in [*self.models, *(each.model for each in domains)]}
        for recipe in self.recipes:
            donor = _template_donor(recipe)
            if donor is not None:
                whose.setdefault(donor, f"{donor}, and so of {recipe.origin},")
        for model, spelled in whose.items():
            try:
                tokenizer = AutoTokenizer.from_pretrained(
                    SourceModel(model, self.placement).folder(),
                    trust_remote_code=self.placement.trust_remote_code,
                )
            # Whatever transformers raises for what it does not know or cannot read.
            except Exception as error:
                raise DppaError(
                    f"{model}: transformers cannot load its tokenizer ({first_line(error)})."
                ) from error
            if not tokenizer.chat_template:
                raise TasksError(
                    f"apply_chat_template: the tokenizer of {spelled} has no chat template."
                )

    @property
    def _domains(self) -> dict[str, list[str]]:
        """Domain -> its tasks."""
        return {name: list(each.of(self.part)) for name, each in self.tasks.domains.items()}

    @property
    def _rows(self) -> list[str]:
        """What the models and merges are called."""
        return [*self.models, *(recipe.origin for recipe in self.recipes)]

    def _teachers(self) -> dict[str, list[str]]:
        """Fine-tuned model, spelled as it is among the models where it is there -> its domains."""
        spelled: dict[object, str] = {}
        for model in self.models:
            spelled.setdefault(identity(model), model)
        found: dict[str, list[str]] = {}
        for name, domain in self.tasks.domains.items():
            model = spelled.setdefault(identity(domain.model), domain.model)
            found.setdefault(model, []).append(name)
        return found

    def _grown(self, harness: Harness, states: dict[str, str]) -> Iterator[Evaluation]:
        """The evaluation so far, each time that one more model is scored.

        The fine-tuned models come first: without their scores there are no ratios.

        Args:
            harness: That scores.
            states: Gains the fingerprint of every folder that is loaded.
        """
        every = list(self.tasks.metrics(self.part))
        rows: dict[str, Scores] = {}
        dense: dict[str, Score] = {}
        teachers = self._teachers()
        total = len({*teachers, *self.models}) + len(self.recipes)
        with tqdm(total=total, desc="evaluate", unit="model", delay=2) as bar:
            for model, domains in teachers.items():
                own = [task for name in domains for task in self._domains[name]]
                asked = every if model in self.models else own
                found = self._scored(harness, self._loaded(model, states), asked)
                check_dense({task: found[task].value for task in own})
                dense.update((task, found[task]) for task in own)
                if model in self.models:
                    rows[model] = found
                bar.update()
                yield self._so_far(dense, rows)
            for model in self.models:
                if model not in rows:
                    rows[model] = self._scored(harness, self._loaded(model, states), every)
                    bar.update()
                    yield self._so_far(dense, rows)
            for recipe in self.recipes:
                rows[recipe.origin] = self._merged(harness, recipe, every)
                bar.update()
                yield self._so_far(dense, rows)

    def _so_far(self, dense: Scores, rows: Mapping[str, Scores]) -> Evaluation:
        """The tables of what is scored; of a domain only when its fine-tuned model is."""
        domains = {
            name: tasks
            for name, tasks in self._domains.items()
            if all(task in dense for task in tasks)
        }
        guard = list(self.tasks.guard.of(self.part))
        tuned_on = frozenset(self._tuned_on(list(self.tasks.metrics(self.part))))
        known = {name: rows[name] for name in self._rows if name in rows}
        missing = [name for name in self._rows if name not in rows]
        for model, names in self._teachers().items():
            if model not in self._rows and not all(name in domains for name in names):
                missing.append(model)
        return Evaluation(domains, guard, dict(dense), known, tuned_on, missing)

    def _loaded(
        self, model: str, states: dict[str, str]
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if os.path.isdir(model):
            # Weights that only transformers finds are those of no merge.
            with suppress(CheckpointError):
                states[model] = fingerprint(Path(model), dated=False)
        return SourceModel(model, self.placement).load()

    def _merged(self, harness: Harness, recipe: Recipe, tasks: Sequence[str]) -> Scores:
        where = self.placement
        with merge_into_folder(recipe, self.workspace, None, where.trust_remote_code) as folder:
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

    def _write(self, folder: Path, found: Evaluation, states: Mapping[str, str]) -> None:
        plain = {"part": self.part, **as_plain(found)}
        path = folder / f"{FILE}.json"
        write_whole(path, json.dumps(plain, indent=1) + "\n")
        write_whole(path.with_suffix(".md"), as_markdown(found))
        if found.models and is_installed():
            draw_evaluation(found, path.with_suffix(".png"))
        subject: dict[str, object] = {
            "models": list(self.models),
            "recipes": {recipe.origin: recipe.content for recipe in self.recipes},
            "tasks": self.tasks.model_dump(mode="json"),
            "part": self.part,
            "checkpoints": dict(states),
            "dtype": str(self.placement.dtype),
        }
        write_record(path, "evaluate", subject, [plain])


def _template_donor(recipe: Recipe) -> str | None:
    """The model whose chat template a merge gets; None where the recipe or mergekit chooses one.

    As in mergekit/merge.py and mergekit/tokenizer/build.py, 0.1.5.
    """
    configuration = recipe.configuration()
    if configuration.chat_template:
        return None
    source = configuration.tokenizer_source
    if configuration.tokenizer is not None:
        source = configuration.tokenizer.source
    donor = configuration.base_model if source in (None, "base", "union") else source
    return None if donor is None else str(donor)


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
