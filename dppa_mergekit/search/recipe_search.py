"""The tuning of a recipe by evaluation: what all searches and contests have in common.

They check the tasks file and the output, and each in its own way the recipe, before the first
evaluation; they keep a journal and share trials among workers. A search then writes the recipe with
its values, a summary, a plot and a run record.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias, TypeVar

from dppa_mergekit import method_table
from dppa_mergekit.errors import DppaError, RecipeError
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.report.plot_style import is_installed
from dppa_mergekit.scoring.engines import EngineName, FolderScorer, describe_engine, make_engine
from dppa_mergekit.scoring.lm_eval_harness import Harness, warn_of_public_tests
from dppa_mergekit.scoring.tasks import Metrics, TasksFile
from dppa_mergekit.scoring.tuning_run import describe_inputs, journal_of
from dppa_mergekit.search.candidates import Settings
from dppa_mergekit.search.options import Options
from dppa_mergekit.search.plots import draw
from dppa_mergekit.search.results import SearchResult
from dppa_mergekit.search.summary import summary
from dppa_mergekit.search.trials import ScoreCommand, Trials
from dppa_mergekit.search.workers import Cluster, connect, distribute
from dppa_mergekit.storage.journal import Journal, open_journal
from dppa_mergekit.storage.output_files import check_recipe_output, write_whole
from dppa_mergekit.storage.run_record import write_record

Scoring: TypeAlias = Harness | FolderScorer
"""What scores candidates: lm-eval in memory, or vLLM or a user's command in merged folders."""

Found = TypeVar("Found")

WHOLE = sys.maxsize
"""A number of items that is larger than that of any task."""

Best: TypeAlias = dict[str, Settings]
"""Name of a search -> its best factors or weights so far. The name is that of a domain, MERGE, or,
in a contest, the label of the entrant that leads."""


@dataclass(frozen=True)
class RecipeTuning(ABC):
    """The tuning of a recipe by evaluation: what all searches share.

    Attributes:
        recipe: The recipe of the whole merge.
        tasks: The tasks that score models; only dev tasks are used.
        output: The file for the recipe with what is found.
        options: How to search.
        placement: Where and how models are held.
        score_command: A shell command that scores merged folders; None for lm-eval.
        engine: What runs the models that lm-eval scores; vllm runs merged folders.
        cluster: Where workers try candidates; None to try them in this process.
    """

    guarded: ClassVar[bool]
    """Whether the dev tasks of the guard are scored too."""

    recipe: Recipe
    tasks: TasksFile
    output: Path
    options: Options
    placement: Placement
    score_command: str | None = None
    engine: EngineName = "transformers"
    cluster: Cluster | None = None

    def tune(self, search: Callable[[Scoring, Journal, Best], Found]) -> Found:
        """Check, and search with a scorer, an open journal and workers.

        Interrupted, write the recipe with the best values so far.

        Args:
            search: Is given what scores candidates, what keeps evaluations, and a mapping to keep
                up to date with the best values so far.

        Raises:
            DppaError: An input cannot be used; before the first evaluation where possible.
        """
        self.check()
        scoring = self.scoring()
        warn_of_public_tests(self.metrics())
        best: Best = {}
        try:
            with open_journal(self.journal, self.subject()) as journal, self._workers():
                return search(scoring, journal, best)
        except KeyboardInterrupt:
            if best:
                self.write_recipe(best)
            raise

    @abstractmethod
    def trials(self, domain: str, scoring: Scoring) -> Trials:
        """Return the trials in this process of a domain, of MERGE, or of an entrant's label."""

    @abstractmethod
    def recipe_with(self, found: Mapping[str, Settings]) -> Recipe:
        """Return the recipe with what was found; the names are those of `Best`."""

    @property
    def journal(self) -> Path:
        """The file of the journal."""
        return journal_of(self.output)

    @property
    def workspace(self) -> Path:
        """A folder that has room for merged models: that of the output."""
        return self.output.resolve().parent

    @property
    def teaches(self) -> bool:
        """Whether the trials have a teacher."""
        return False

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded.

        Raises:
            DppaError: The tasks file has no domain, a domain has no dev tasks or a model that is
                not in the recipe, or the output cannot be written.
        """
        if not self.tasks.domains:
            raise DppaError("The tasks file has no domains; a search needs at least one.")
        for name, domain in self.tasks.domains.items():
            self.recipe.spelling_of(domain.model)
            if not domain.dev:
                raise DppaError(f"Domain {name} has no dev tasks; a search needs at least one.")
        check_recipe_output(self.output)

    def metrics(self) -> Metrics:
        """Return dev task -> metric, of all tasks that score candidates."""
        return self.tasks.metrics("dev", guard=self.guarded)

    def scoring(self) -> Scoring:
        """Return what scores candidates.

        Raises:
            DppaError: lm-eval lacks a task, or vLLM is not installed.
        """
        if self.score_command is not None:
            return ScoreCommand(self.score_command)
        harness = Harness(self.tasks, self.metrics())
        if self.engine == "transformers":
            return harness
        return make_engine(self.engine, harness, self.placement, self.tasks)

    def subject(self) -> dict[str, object]:
        """Return the inputs of the search, part by part; the journal of others is not resumed."""
        options = asdict(self.options)
        # A search may be resumed with a larger budget.
        del options["max_evaluations"], options["share"]
        by_lm_eval = self.score_command is None
        return {
            **describe_inputs(
                self.recipe, self.tasks, self.placement, by_lm_eval, self.engine, self.guarded
            ),
            "options": options,
            "tune_dense": False,
            "score_command": self.score_command,
            **describe_engine(self.engine),
            "prompts": None,
            "merge": None,
        }

    @contextmanager
    def open_trials(self, scoring: Scoring, at_once: int = 1) -> Iterator[Callable[[str], Trials]]:
        """Yield a function that returns the trials of a domain, of MERGE, or of an entrant.

        They are made in this process, or are a share of the workers.

        Args:
            scoring: Scores candidates in this process.
            at_once: Number of searches that share the workers.
        """
        if self.cluster is None:
            yield lambda domain: self.trials(domain, scoring)
            return
        workers = self.cluster.workers // at_once
        make = self._trials_in_worker
        with distribute(
            make, workers, at_once * workers, self._gpus > 0, self.teaches
        ) as trials_of:
            yield trials_of

    @property
    def batch(self) -> int:
        """The number of items that are scored at once; 1 where lm-eval chooses it.

        A merged folder is made anew each time, so that vLLM is given many.
        """
        if self.engine == "vllm":
            return WHOLE
        return 1 if self.tasks.batch_size == "auto" else self.tasks.batch_size

    @property
    def _gpus(self) -> int:
        """The number of GPUs that the workers need: one each on cuda."""
        cuda = self.placement.device.startswith("cuda")
        return self.cluster.workers if cuda and self.cluster is not None else 0

    def _workers(self) -> AbstractContextManager[None]:
        return nullcontext() if self.cluster is None else connect(self.cluster, self._gpus)

    def _trials_in_worker(self, domain: str) -> Trials:
        return self.trials(domain, self.scoring())

    def write_recipe(self, found: Mapping[str, Settings]) -> None:
        """Write the recipe with what was found; the names are those of `Best`."""
        write_whole(self.output, self.recipe_with(found).to_yaml())


def check_has_factors(recipe: Recipe) -> None:
    """Refuse a recipe whose method amplifies nothing.

    Raises:
        RecipeError: The method has no factors.
    """
    allowed = method_table.amplified()
    if recipe.method not in allowed:
        raise RecipeError(
            f"{recipe.origin}: {recipe.method} has no factors; allowed are {', '.join(allowed)}."
        )


class RecipeSearch(RecipeTuning):
    """A search over the models of a recipe, for every domain or for MERGE."""

    @abstractmethod
    def search(self, scoring: Scoring, journal: Journal, best: Best) -> list[SearchResult]:
        """Search.

        Args:
            scoring: Scores candidates.
            journal: Keeps evaluations.
            best: Is kept up to date with the best values so far.
        """

    def run(self) -> list[SearchResult]:
        """Search, and write the recipe, a summary, a plot and a record of the run.

        Interrupted, write the recipe with the best values so far.

        Raises:
            DppaError: An input cannot be used; before the first evaluation where possible.
        """
        results = self.tune(self.search)
        self.write_recipe({result.domain: result.factors for result in results})
        write_whole(self.output.with_suffix(".md"), summary(results, self.options.strategy))
        if is_installed():
            draw(results, self.options.strategy, self.output.with_suffix(".png"))
        records = [result.to_record() for result in results]
        write_record(self.output, "search", self.subject(), records)
        return results
