"""From a recipe and a tasks file to the recipe with its factors: what `mergekit-dppa search` does.

Everything that can be refused is refused before the first evaluation.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit import method_table
from dppa_mergekit.errors import DppaError, RecipeError
from dppa_mergekit.live.source_model import Placement, fingerprints
from dppa_mergekit.recipes import Recipe, Setting
from dppa_mergekit.report.plot_style import is_installed
from dppa_mergekit.scoring.lm_eval_harness import Harness, known_tests, lm_eval_version
from dppa_mergekit.scoring.merge_objective import experts_of, objective_of
from dppa_mergekit.scoring.objectives import MergeObjective
from dppa_mergekit.scoring.tasks import TasksFile, folder_hash
from dppa_mergekit.search.candidate_search import (
    DENSE_CANDIDATE,
    MERGE,
    CandidateSearch,
    Options,
    SearchResult,
)
from dppa_mergekit.search.factor_trials import (
    Bench,
    CallableScorer,
    FolderBench,
    LiveBench,
    ScoreCommand,
)
from dppa_mergekit.search.plots import draw
from dppa_mergekit.search.strategies import WEIGHTS
from dppa_mergekit.search.summary import summary
from dppa_mergekit.search.weight_trials import (
    FolderMergeBench,
    MergeBench,
    weights_of,
)
from dppa_mergekit.search.workers import Cluster, connect, distribute
from dppa_mergekit.storage.journal import Journal, open_journal
from dppa_mergekit.storage.output_files import check_recipe_output, write_whole
from dppa_mergekit.storage.run_record import write_record
from dppa_mergekit.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)


WEIGHTED = ("task_arithmetic", "ties", "dare_linear", "dare_ties")
"""Methods of mergekit's own whose weights can be tuned, beside those of this package."""


@dataclass(frozen=True)
class WholeMerge:
    """How the weights of a whole merge are tuned.

    Attributes:
        shared: One weight for all models.
        worst: By the least Domain-Ratio, in place of the mean.
        guard_loss: The share of the base model's scores that may be lost on guard tasks.
    """

    shared: bool = False
    worst: bool = False
    guard_loss: float = 0.05


@dataclass(frozen=True)
class Search:
    """A search over the models of a recipe: for the factors of each, or the weights of the merge.

    Attributes:
        recipe: Of the whole merge.
        tasks: By what models are scored; only dev tasks are seen.
        output: Where the tuned recipe goes.
        options: How to search.
        placement: Where and how models are held.
        tune_dense: Whether `amplify_dense` is tuned too.
        score_command: Scores merged folders in place of lm-eval.
        prompts: What fine-tuned models teach by; their dev tasks' prompts where None.
        merge: How weights are tuned; None to tune factors.
        cluster: Where workers try candidates; None to try them in this process.
    """

    recipe: Recipe
    tasks: TasksFile
    output: Path
    options: Options
    placement: Placement
    tune_dense: bool = False
    score_command: str | None = None
    prompts: Sequence[str] | None = None
    merge: WholeMerge | None = None
    cluster: Cluster | None = None

    def run(self) -> list[SearchResult]:
        """Search, and write the tuned recipe, a summary and a record of the run.

        Raises:
            DppaError: Whatever the user can mend; before the first evaluation where possible.
        """
        self._check()
        harness = None
        if self.score_command is None:
            harness = Harness(self.tasks, self._dev())
        for task in known_tests(self._dev()):
            LOG.warning(
                "dev task %s is a public test split; what is tuned on it makes its score mean "
                "little.",
                task,
            )
        best: dict[str, Mapping[str, Setting]] = {}
        try:
            with (
                open_journal(self.journal, self._subject()) as journal,
                nullcontext() if self.cluster is None else connect(self.cluster, self._gpus),
            ):
                if self.merge is None:
                    found = self._factors(harness, journal, best)
                else:
                    found = [self._weights(self.merge, harness, journal, best)]
        except KeyboardInterrupt:
            if best:
                self._write(best)
            raise
        if self.merge is not None and found[0].lost:
            LOG.warning(
                "The guard tasks lose more than --guard-loss %g allows: no weights were found that "
                "keep them.",
                self.merge.guard_loss,
            )
        self._write({each.model: each.factors for each in found})
        write_whole(self.output.with_suffix(".md"), summary(found, self.options.strategy))
        if is_installed():
            draw(found, self.output.with_suffix(".png"))
        write_record(self.output, "search", self._subject(), [asdict(each) for each in found])
        return found

    def _write(self, found: Mapping[str, Mapping[str, Setting]]) -> None:
        """Write the recipe with the factors of its models, or with the weights of the merge."""
        recipe = self.recipe
        for model, factors in found.items():
            if self.merge is None:
                recipe = recipe.with_parameters(model, factors)
            else:
                recipe = recipe.weighted(weights_of(recipe, factors))
        write_whole(self.output, recipe.to_yaml())

    def _dev(self) -> dict[str, str]:
        """Dev task -> metric: of the domains, and of the guard where a merge is tuned."""
        return self.tasks.metrics("dev", guard=self.merge is not None)

    def _factors(
        self, harness: Harness | None, journal: Journal, best: dict[str, Mapping[str, Setting]]
    ) -> list[SearchResult]:
        names = list(self.tasks.domains)
        at_once = 1 if self.cluster is None else min(self.cluster.workers, len(names))

        def search_of(name: str, bench: Bench) -> CandidateSearch:
            domain = self.tasks.domains[name]
            items = {
                task: 0 if harness is None else harness.item_count(task) for task in domain.dev
            }
            model = self.recipe.named(domain.model)
            return CandidateSearch(
                name,
                model,
                items,
                bench,
                self.options,
                journal,
                best_so_far=partial(best.__setitem__, model),
                batch=self._batch,
            )

        def prepare(name: str) -> None:
            known = any(
                (each["domain"], each["candidate"]) == (name, DENSE_CANDIDATE)
                for each in journal.entries
            )
            one_each = 1 if self.cluster is None else self.cluster.workers
            # What the journal has needs no worker.
            with (
                nullcontext(self._bench(name, harness))
                if known
                else self._tried_on(name, harness, one_each)
            ) as bench:
                search_of(name, bench).dense()

        def found(name: str) -> SearchResult:
            with self._tried_on(name, harness, at_once) as bench:
                return search_of(name, bench).run()

        # All fine-tuned models come first: one that scores nothing ends the search, and that is
        # not to happen after another domain has taken hours.
        if at_once == 1:
            for name in names:
                prepare(name)
            return [found(name) for name in names]
        threads = ThreadPoolExecutor(at_once)
        try:
            list(threads.map(prepare, names))
            return list(threads.map(found, names))
        except BaseException:
            # Those that still wait for workers end with these.
            threads.shutdown(wait=False, cancel_futures=True)
            raise

    def _weights(
        self,
        how: WholeMerge,
        harness: Harness | None,
        journal: Journal,
        best: dict[str, Mapping[str, Setting]],
    ) -> SearchResult:
        def objective(dense: Mapping[str, float]) -> MergeObjective:
            return objective_of(self.tasks, dense, how.worst, how.guard_loss)

        begin = list(self.recipe.weights().values())
        with self._tried_on(MERGE, harness, 1) as bench:
            return CandidateSearch(
                MERGE,
                str(self.recipe.content["base_model"]),
                {task: 0 if harness is None else harness.item_count(task) for task in self._dev()},
                bench,
                self.options,
                journal,
                objective,
                [sum(begin) / len(begin)] if how.shared else begin,
                partial(best.__setitem__, MERGE),
                self._batch,
            ).run()

    @property
    def _batch(self) -> int:
        """How many items are scored at once, where that is known."""
        return 1 if self.tasks.batch_size == "auto" else self.tasks.batch_size

    @contextmanager
    def _tried_on(self, name: str, harness: Harness | None, at_once: int) -> Iterator[Bench]:
        """The bench of a domain, or of the merge: here, or its share of the workers."""
        if self.cluster is None:
            yield self._bench(name, harness)
            return
        workers = self.cluster.workers // at_once
        make, gpu = partial(self._bench_in_worker, name), self._gpus > 0
        with distribute(make, workers, at_once * workers, gpu) as bench:
            yield bench

    @property
    def _gpus(self) -> int:
        """How many the workers need: one each, if any."""
        cuda = self.placement.device.startswith("cuda")
        return self.cluster.workers if cuda and self.cluster is not None else 0

    def _bench_in_worker(self, name: str) -> Bench:
        harness = None if self.score_command is not None else Harness(self.tasks, self._dev())
        return self._bench(name, harness)

    def _bench(self, name: str, harness: Harness | None) -> Bench:
        return (
            self._bench_of_domain(name, harness)
            if self.merge is None
            else self._bench_of_merge(self.merge, harness)
        )

    def _bench_of_merge(self, how: WholeMerge, harness: Harness | None) -> Bench:
        experts = experts_of(self.tasks, self.recipe)
        workspace = self.output.resolve().parent
        if self.score_command is not None:
            return FolderMergeBench(
                self.recipe,
                experts,
                ScoreCommand(self.score_command),
                workspace,
                how.shared,
                self.placement.trust_remote_code,
            )
        assert harness is not None
        return MergeBench(self.recipe, experts, harness, workspace, self.placement, how.shared)

    @property
    def journal(self) -> Path:
        """The file of the journal."""
        return self.output.with_name(self.output.name + ".journal.jsonl")

    def _check(self) -> None:
        """Refuse what can be refused before anything is loaded."""
        if self.merge is not None:
            known = [*method_table.names(), *WEIGHTED]
            if self.recipe.method not in known:
                raise RecipeError(
                    f"{self.recipe.origin}: the weights of {self.recipe.method} cannot be tuned; "
                    f"allowed are {', '.join(known)}."
                )
            if self.options.strategy != WEIGHTS:
                raise DppaError(
                    f"--strategy {self.options.strategy} is for factors; weights are tuned in one "
                    f"way only."
                )
            self.recipe.weights()
        else:
            check_amplified(self.recipe, self.options)
        if self.options.strategy == "distill" and self.score_command is not None:
            raise DppaError("--strategy distill needs the model in memory: no --score-command.")
        if not self.tasks.domains:
            raise DppaError("The tasks file has no domains, and a search needs some.")
        domain_of: dict[str, str] = {}
        for name, domain in self.tasks.domains.items():
            first = domain_of.setdefault(self.recipe.named(domain.model), name)
            if self.merge is None and first != name:
                raise DppaError(
                    f"Domains {first} and {name} have one model, {domain.model}, which has one set "
                    f"of factors: put their tasks into one domain."
                )
            if not domain.dev:
                raise DppaError(f"Domain {name} has no dev tasks, and a search needs some.")
        check_recipe_output(self.output)

    def _bench_of_domain(self, domain: str, harness: Harness | None) -> Bench:
        model = self.recipe.named(self.tasks.domains[domain].model)
        alone = self.recipe.alone(model)
        workspace = self.output.resolve().parent
        if self.score_command is not None:
            return FolderBench(
                alone,
                model,
                ScoreCommand(self.score_command),
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
            per_block=self.options.per_block,
        )

    def _subject(self) -> dict[str, object]:
        """What the search is of, part by part: a journal of anything else is not gone on with."""
        options = asdict(self.options)
        # More evaluations go on where fewer ended.
        del options["max_evaluations"]
        unseen = {"include_path"} if self.merge is not None else {"include_path", "guard"}
        tasks = self.tasks.model_dump(mode="json", exclude=unseen)
        if self.merge is not None:
            del tasks["guard"]["test"]
        for domain in tasks["domains"].values():
            del domain["test"]
        return {
            "version": __version__,
            "lm_eval": None if self.score_command is not None else lm_eval_version(),
            "recipe": self.recipe.content,
            "tasks": tasks,
            "task files": folder_hash(self.tasks.include_path),
            "checkpoints": fingerprints(self.recipe),
            "options": options,
            "dtype": str(self.placement.dtype),
            "tune_dense": self.tune_dense,
            "score_command": self.score_command,
            "prompts": None if self.prompts is None else list(self.prompts),
            "merge": None if self.merge is None else asdict(self.merge),
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
) -> SearchResult:
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
    chosen = options or default_options(recipe.method)
    check_amplified(recipe, chosen)
    named = recipe.named(model)
    bench = LiveBench(
        recipe.alone(named),
        named,
        CallableScorer(score),
        Path(tempfile.gettempdir()) if workspace is None else workspace,
        placement or Placement(),
        tune_dense,
        prompts,
        per_block=chosen.per_block,
    )
    return CandidateSearch(named, named, {}, bench, chosen).run()


WEIGHT_OPTIONS = Options(strategy=WEIGHTS, low=0.0, high=1.5)
"""How to search for the weights of a merge."""


def default_options(method: str) -> Options:
    """How to search for factors: random partitions were rescaled, so theirs reduce."""
    if method in method_table.rescaled():
        return Options(low=0.1, high=1.0, downwards=True)
    return Options()


def check_amplified(recipe: Recipe, options: Options) -> None:
    """Refuse a recipe whose factors cannot be searched so."""
    amplified = method_table.amplified()
    if recipe.method not in amplified:
        raise RecipeError(
            f"{recipe.origin}: {recipe.method} has no partitions to amplify; allowed are "
            f"{', '.join(amplified)}."
        )
    if options.per_block and options.strategy != "distill":
        raise DppaError("--per-block needs --strategy distill: a teacher for so many factors.")
    if options.per_block and recipe.is_sliced:
        raise RecipeError(
            f"{recipe.origin}: --per-block writes gradients, which mergekit counts anew in each "
            f"slice; allowed is a recipe of whole models."
        )
