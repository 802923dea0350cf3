"""Evaluation: score models and merges on a tasks file; `mergekit-dppa evaluate` runs it."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from dppa_mergekit.checks.checkpoint_files import inspect_folder
from dppa_mergekit.errors import CheckpointError, DppaError
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.live.source_model import SourceModel, fingerprint
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.recipes.references import identity
from dppa_mergekit.report.plot_style import is_installed
from dppa_mergekit.scoring.engines import EngineName, FolderScorer, describe_engine, make_engine
from dppa_mergekit.scoring.lm_eval_harness import Harness, require_chat_template
from dppa_mergekit.scoring.plots import draw_evaluation
from dppa_mergekit.scoring.ratios import Items, Score, Scores
from dppa_mergekit.scoring.tables import FILE, Evaluation, as_markdown, as_plain
from dppa_mergekit.scoring.tasks import Part, TasksFile, check_fine_tuned_scores
from dppa_mergekit.storage.output_files import check_output_folder, write_whole
from dppa_mergekit.storage.run_record import read_records, write_record

LOG = logging.getLogger(__name__)


def evaluate(
    models: Sequence[str],
    tasks: TasksFile | Path,
    recipes: Sequence[Recipe] = (),
    part: Part = "test",
    output: Path | None = None,
    placement: Placement = AS_STORED,
    workspace: Path | None = None,
    engine: EngineName = "transformers",
) -> Evaluation:
    """Score models and merges on all tasks, and return their scores and ratios.

    The fine-tuned model of each domain is scored on its own domain too, even if it is not asked
    for. The scores before an error or Ctrl-C stay in the output folder.

    Example::

        from pathlib import Path

        from dppa_mergekit import evaluate

        found = evaluate(["./base", "./merged"], Path("tasks.yml"))
        print(found.domain_ratio("./merged", "math"))  # 93.1 ± 1.2

    Args:
        models: Fine-tuned models, bases and merges: folders, or names on the Hub.
        tasks: The tasks file, or its path; it has at least one domain.
        recipes: Merges to make, score and delete.
        part: Which tasks to score: "test", or "dev".
        output: A folder for tables, chart and run record; None to write nothing.
        placement: The device and dtype of the live models.
        workspace: A folder on a disk with room for a merged model; None for the system's
            temporary folder.
        engine: What runs the models; "vllm" needs the extra `vllm`.

    Raises:
        DppaError: A model, a recipe, a task or the output cannot be used; if possible, before the
            first model is loaded.
    """
    chosen = tasks if isinstance(tasks, TasksFile) else TasksFile.read(tasks)
    request = EvaluationRequest(
        tuple(dict.fromkeys(models)),
        tuple(recipes),
        chosen,
        part,
        output,
        placement,
        Path(tempfile.gettempdir()) if workspace is None else workspace,
        engine,
    )
    _check_request(request)
    harness = Harness(chosen, chosen.metrics(part))
    if chosen.apply_chat_template:
        _check_chat_templates(request)
    return _score_and_write(request, make_engine(engine, harness, placement, chosen))


@dataclass(frozen=True)
class EvaluationRequest:
    """What to score, on which tasks, and where; see `evaluate` for the attributes."""

    models: tuple[str, ...]
    recipes: tuple[Recipe, ...]
    tasks: TasksFile
    part: Part
    output: Path | None
    placement: Placement
    workspace: Path
    engine: EngineName

    @property
    def names(self) -> list[str]:
        """The rows of the tables: the names of models and recipes."""
        return [*self.models, *(recipe.origin for recipe in self.recipes)]

    @property
    def all_tasks(self) -> list[str]:
        """The tasks of the part, of all domains and the guard."""
        return list(self.tasks.metrics(self.part))

    @property
    def domains(self) -> dict[str, list[str]]:
        """Domain -> its tasks of the part."""
        return {name: list(domain.of(self.part)) for name, domain in self.tasks.domains.items()}

    @property
    def fine_tuned(self) -> dict[str, list[str]]:
        """Fine-tuned model -> its domains; spelled as among the models if it is one of them."""
        spelling: dict[object, str] = {}
        for model in self.models:
            spelling.setdefault(identity(model), model)
        found: dict[str, list[str]] = {}
        for name, domain in self.tasks.domains.items():
            model = spelling.setdefault(identity(domain.model), domain.model)
            found.setdefault(model, []).append(name)
        return found


@dataclass
class _Progress:
    """The scores so far.

    Attributes:
        fine_tuned_scores: Task -> score of its domain's fine-tuned model.
        models: Name of a model or recipe -> its scores.
        checkpoints: Folder of a model that was loaded -> its fingerprint.
    """

    fine_tuned_scores: dict[str, Score] = field(default_factory=dict)
    models: dict[str, Scores] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)


def _check_request(request: EvaluationRequest) -> None:
    """Refuse whatever can be refused before anything is loaded."""
    if request.output is not None:
        check_output_folder(request.output, f"{FILE}.json")
    for name, tasks in request.domains.items():
        if not tasks:
            raise DppaError(f"Domain {name} has no {request.part} tasks.")
    if not request.domains:
        raise DppaError("The tasks file has no domains; ratios need at least one.")
    domains = request.tasks.domains.values()
    for model in request.models:
        if Path(model).is_file():
            raise DppaError(
                f"{model} is a file, and no model's folder; a recipe is given as --recipe {model}."
            )
    _refuse_repeated(request)
    for model in [*request.models, *(domain.model for domain in domains)]:
        _refuse_broken(SourceModel(model, request.placement).folder(), model)


def _refuse_repeated(request: EvaluationRequest) -> None:
    """Refuse a recipe that shares its name with another or a model: scores go by name."""
    for recipe in request.recipes:
        if request.names.count(recipe.origin) > 1:
            raise DppaError(
                f"Of the models and recipes, two are named {recipe.origin!r}: give each file once, "
                f"and in Python each Recipe its own `origin`."
            )


def _refuse_broken(folder: Path, model: str) -> None:
    """Refuse a folder that is incomplete or holds two merges: its scores would mean nothing."""
    _, findings = inspect_folder(folder, model)
    for finding in findings:
        if finding.severity == "error":
            raise CheckpointError(f"{model}: {finding.sentence}")


def _check_chat_templates(request: EvaluationRequest) -> None:
    """Refuse models without a chat template, since the prompts are to be put into one."""
    domains = request.tasks.domains.values()
    owners = {model: model for model in [*request.models, *(domain.model for domain in domains)]}
    for recipe in request.recipes:
        donor = _template_donor(recipe)
        if donor is not None:
            owners.setdefault(donor, f"{donor}, and so of {recipe.origin},")
    for model, owner in owners.items():
        require_chat_template(SourceModel(model, request.placement).tokenizer(), owner)


def _template_donor(recipe: Recipe) -> str | None:
    """Return the model whose chat template a merge gets; None if no single model gives it.

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


def _score_and_write(request: EvaluationRequest, scorer: FolderScorer) -> Evaluation:
    """Score everything, and write the tables anew after each model."""
    if request.output is not None:
        request.output.mkdir(parents=True, exist_ok=True)
    progress = _Progress()
    steps = tqdm(
        _score_one_by_one(request, scorer, progress),
        desc="evaluate",
        total=len({*request.fine_tuned, *request.models}) + len(request.recipes),
        unit="model",
        delay=2,
    )
    written: Evaluation | None = None
    try:
        for _ in steps:
            found = _tabulate(request, progress)
            if request.output is not None:
                _write(request, request.output, found, progress.checkpoints)
                written = found
    except BaseException:
        if written is not None and written.missing:
            LOG.warning(
                "%s has the scores so far; missing: %s.",
                request.output,
                ", ".join(written.missing),
            )
        raise
    return found


def _score_one_by_one(
    request: EvaluationRequest, scorer: FolderScorer, progress: _Progress
) -> Iterator[None]:
    """Score every model and merge, and yield after each, when `progress` has its scores.

    The fine-tuned models come first, since ratios need their scores.
    """
    tasks = request.all_tasks
    for model, domains in request.fine_tuned.items():
        own = [task for name in domains for task in request.domains[name]]
        asked = tasks if model in request.models else own
        scores = _score_model(request, scorer, progress, model, asked)
        check_fine_tuned_scores({task: scores[task].value for task in own})
        progress.fine_tuned_scores.update((task, scores[task]) for task in own)
        if model in request.models:
            progress.models[model] = scores
        yield
    for model in request.models:
        if model not in progress.models:
            progress.models[model] = _score_model(request, scorer, progress, model, tasks)
            yield
    for recipe in request.recipes:
        loading = request.placement.loading
        with merge_into_folder(recipe, request.workspace, None, loading) as folder:
            progress.models[recipe.origin] = scorer.run(folder, _all_items(scorer, tasks))
        yield


def _score_model(
    request: EvaluationRequest,
    scorer: FolderScorer,
    progress: _Progress,
    model: str,
    tasks: Sequence[str],
) -> Scores:
    """Score a model on all items of some tasks, and note the fingerprint of its folder."""
    if os.path.isdir(model):
        # mergekit finds no weights in a folder that only transformers can read.
        with suppress(CheckpointError):
            progress.checkpoints[model] = fingerprint(Path(model), dated=False)
    source = SourceModel(model, request.placement)
    return scorer.run(source.folder(), _all_items(scorer, tasks), source.tokenizer_folder())


def _all_items(scorer: FolderScorer, tasks: Sequence[str]) -> Items:
    return {task: range(scorer.item_count(task)) for task in tasks}


def _tabulate(request: EvaluationRequest, progress: _Progress) -> Evaluation:
    """Return the evaluation so far; a domain is in it once its fine-tuned model is scored."""
    domains = {
        name: tasks
        for name, tasks in request.domains.items()
        if all(task in progress.fine_tuned_scores for task in tasks)
    }
    names = request.names
    missing = [name for name in names if name not in progress.models]
    for model, own in request.fine_tuned.items():
        if model not in names and not all(name in domains for name in own):
            missing.append(model)
    return Evaluation(
        domains,
        list(request.tasks.guard.of(request.part)),
        dict(progress.fine_tuned_scores),
        {name: progress.models[name] for name in names if name in progress.models},
        _seen_tasks(request),
        missing,
    )


def _seen_tasks(request: EvaluationRequest) -> frozenset[str]:
    """Return the tasks that a search or AdaMerging of one of the models or recipes has seen."""
    folders = {Path(model).resolve().parent for model in request.models if Path(model).exists()}
    folders |= {Path(recipe.origin).resolve().parent for recipe in request.recipes}
    seen = {task for folder in folders for task in _dev_tasks(read_records(folder))}
    return frozenset(seen.intersection(request.all_tasks))


def _dev_tasks(records: Mapping[str, object]) -> Iterator[str]:
    """Yield the dev tasks of the searches and AdaMergings in run records."""
    for record in records.values():
        if not isinstance(record, dict) or record.get("command") not in ("search", "adamerge"):
            continue
        tasks = record.get("tasks")
        if not isinstance(tasks, dict):
            continue
        for domain in (*tasks["domains"].values(), tasks.get("guard") or {}):
            yield from domain.get("dev", ())


def _write(
    request: EvaluationRequest, folder: Path, found: Evaluation, checkpoints: Mapping[str, str]
) -> None:
    """Write `evaluation.json`, the Markdown tables, the chart and the run record."""
    plain = {"part": request.part, **as_plain(found)}
    path = folder / f"{FILE}.json"
    write_whole(path, json.dumps(plain, indent=1) + "\n")
    write_whole(path.with_suffix(".md"), as_markdown(found))
    if found.models and is_installed():
        draw_evaluation(found, path.with_suffix(".png"))
    subject: dict[str, object] = {
        "models": list(request.models),
        "recipes": {recipe.origin: recipe.content for recipe in request.recipes},
        "tasks": request.tasks.model_dump(mode="json"),
        "part": request.part,
        "checkpoints": dict(checkpoints),
        "dtype": str(request.placement.dtype),
        **describe_engine(request.engine),
    }
    write_record(path, "evaluate", subject, [plain])
