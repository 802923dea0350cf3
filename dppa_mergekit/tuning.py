"""From a recipe and a tasks file to the recipe with its factors: what `mergekit-dppa search` does.

Everything that can be refused is refused before the first evaluation.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit import __version__
from dppa_mergekit.benches import (
    Bench,
    CallableScorer,
    FolderBench,
    LiveBench,
    Placement,
    fingerprint,
)
from dppa_mergekit.curves import draw, is_installed
from dppa_mergekit.errors import DppaError, RecipeError
from dppa_mergekit.harness import Harness, known_tests
from dppa_mergekit.journal import opened
from dppa_mergekit.recipes import Recipe
from dppa_mergekit.records import write_record
from dppa_mergekit.search import DomainSearch, Options, Tuned
from dppa_mergekit.summary import summary
from dppa_mergekit.tasks import TasksFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """A search over the models of a recipe.

    Attributes:
        recipe: Of the whole merge.
        tasks: By what models are scored; only dev tasks are seen.
        output: Where the tuned recipe goes.
        options: How to search.
        placement: Where and how models are held.
        tune_dense: Whether `amplify_dense` is tuned too.
        score_command: Scores merged folders in place of lm-eval.
        prompts: What fine-tuned models teach by; their dev tasks' prompts where None.
    """

    recipe: Recipe
    tasks: TasksFile
    output: Path
    options: Options
    placement: Placement
    tune_dense: bool = False
    score_command: str | None = None
    prompts: Sequence[str] | None = None

    def run(self) -> list[Tuned]:
        """Search, and write the tuned recipe, a summary and a record of the run.

        Raises:
            DppaError: Whatever the user can mend; before the first evaluation where possible.
        """
        self._check()
        harness = None
        if self.score_command is None:
            metrics = {
                task: metric
                for domain in self.tasks.domains.values()
                for task, metric in domain.dev.items()
            }
            harness = Harness(self.tasks, metrics)
        for task in known_tests(task for each in self.tasks.domains.values() for task in each.dev):
            LOG.warning(
                "dev task %s is a public test split; factors tuned on it make its score mean "
                "little.",
                task,
            )
        with opened(self.journal, self._subject()) as journal:
            found = []
            for name, domain in self.tasks.domains.items():
                model = self.recipe.named(domain.model)
                items = {task: 0 if harness is None else harness.items(task) for task in domain.dev}
                search = DomainSearch(
                    name, model, items, self._bench(name, model, harness), self.options, journal
                )
                found.append(search.run())
        tuned = self.recipe
        for each in found:
            tuned = tuned.with_parameters(each.model, each.factors)
        replace(self.output, tuned.to_yaml())
        replace(self.output.with_suffix(".md"), summary(found, self.options.strategy))
        if is_installed():
            draw(found, self.output.with_suffix(".png"))
        write_record(self.output, "search", self._subject(), [asdict(each) for each in found])
        return found

    @property
    def journal(self) -> Path:
        """The file of the journal."""
        return self.output.with_name(self.output.name + ".journal.jsonl")

    def _check(self) -> None:
        """Refuse what can be refused before anything is loaded."""
        amplified = amplified_methods()
        if self.recipe.method not in amplified:
            raise RecipeError(
                f"{self.recipe.origin}: {self.recipe.method} has no partitions to amplify; "
                f"allowed are {', '.join(amplified)}."
            )
        if self.options.strategy == "distill" and self.score_command is not None:
            raise DppaError("--strategy distill needs the model in memory: no --score-command.")
        if not self.tasks.domains:
            raise DppaError("The tasks file has no domains, and a search needs some.")
        for name, domain in self.tasks.domains.items():
            self.recipe.named(domain.model)
            if not domain.dev:
                raise DppaError(f"Domain {name} has no dev tasks, and a search needs some.")
        folder = self.output.resolve().parent
        if self.output.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise DppaError(f"{self.output} cannot be written: its folder must exist, and be open.")

    def _bench(self, domain: str, model: str, harness: Harness | None) -> Bench:
        alone = self.recipe.alone(model)
        workspace = self.output.resolve().parent
        if self.score_command is not None:
            return FolderBench(
                alone,
                model,
                self.score_command,
                workspace,
                self.tune_dense,
                self.placement.trust_remote_code,
            )
        assert harness is not None
        return LiveBench(
            alone,
            model,
            harness,
            workspace,
            self.placement,
            self.tune_dense,
            self.prompts,
            self.output.with_name(f"{self.output.name}.teacher-{domain}.safetensors"),
        )

    def _subject(self) -> dict[str, object]:
        """What the search is of, part by part: a journal of anything else is not gone on with."""
        models = [str(self.recipe.content["base_model"]), *self.recipe.tuned()]
        options = asdict(self.options)
        # More evaluations go on where fewer ended.
        del options["max_evaluations"]
        tasks = self.tasks.model_dump(mode="json", exclude={"include_path", "guard"})
        for domain in tasks["domains"].values():
            del domain["test"]
        return {
            "version": __version__,
            "recipe": self.recipe.content,
            "tasks": tasks,
            "task files": _folder_hash(self.tasks.include_path),
            "checkpoints": {model: fingerprint(model) for model in models},
            "options": options,
            "dtype": str(self.placement.dtype),
            "tune_dense": self.tune_dense,
            "score_command": self.score_command,
            "prompts": None if self.prompts is None else list(self.prompts),
        }


def search_amplification(
    recipe: Recipe,
    model: str,
    score: Callable[[PreTrainedModel, PreTrainedTokenizerBase], Mapping[str, float]],
    options: Options | None = None,
    placement: Placement | None = None,
    tune_dense: bool = False,
    prompts: Sequence[str] | None = None,
    workspace: Path | None = None,
) -> Tuned:
    """The amplification factors of one fine-tuned model, by any evaluation.

    Args:
        recipe: Of the merge; its file is read by `Recipe.read`.
        model: The fine-tuned model, as the recipe names it.
        score: Given a live model and its tokenizer, returns task -> score, above 0 for the
            fine-tuned model itself. It is called once for each candidate.
        options: How to search.
        placement: Where and how models are held.
        tune_dense: Whether `amplify_dense` is tuned too.
        prompts: What the fine-tuned model teaches by, for the strategy `distill`.
        workspace: A folder on a disk with room for a merged model; the system's temporary one
            where None.

    Raises:
        RecipeError: The recipe has no such model, or its method no partitions.
        TasksError: The fine-tuned model itself scores 0 on a task.
    """
    if recipe.method not in amplified_methods():
        raise RecipeError(f"{recipe.origin}: {recipe.method} has no partitions to amplify.")
    named = recipe.named(model)
    bench = LiveBench(
        recipe.alone(named),
        named,
        CallableScorer(score),
        Path(tempfile.gettempdir()) if workspace is None else workspace,
        placement or Placement(),
        tune_dense,
        prompts,
    )
    chosen = options or default_options(recipe.method)
    return DomainSearch(named, named, {}, bench, chosen).run()


def amplified_methods() -> list[str]:
    """The merge methods that have partitions."""
    from dppa_mergekit.methods import VARIANTS

    return [variant.name for variant in VARIANTS if variant.amplified]


def default_options(method: str) -> Options:
    """How to search for a method: random partitions were rescaled, so their factors reduce."""
    if method == "dare_dpa":
        return Options(low=0.1, high=1.0, downwards=True)
    return Options()


def replace(path: Path, text: str) -> None:
    """Write a file under another name first, so that it is there as a whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _folder_hash(folder: Path | None) -> str | None:
    """Of the contents of a folder of tasks."""
    if folder is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
