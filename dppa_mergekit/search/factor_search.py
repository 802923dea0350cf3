"""Amplification factors by evaluation: a search for each fine-tuned model of a recipe, alone.

Methods 1 and 2 of the paper (3.3.2) are the strategy `climb` in `strategies.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dppa_mergekit import method_table
from dppa_mergekit.errors import DppaError, RecipeError
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.lm_eval_harness import Harness
from dppa_mergekit.scoring.merge_objective import score_experts
from dppa_mergekit.scoring.tuning_run import lessons_of
from dppa_mergekit.search.candidate_search import CandidateSearch
from dppa_mergekit.search.candidates import Settings
from dppa_mergekit.search.evaluations import has_fine_tuned_scores
from dppa_mergekit.search.factor_trials import (
    FolderFactors,
    LiveFactors,
    TaughtFactorTrials,
    tokenize_texts,
)
from dppa_mergekit.search.options import Options
from dppa_mergekit.search.recipe_search import Best, RecipeSearch, Scoring, check_has_factors
from dppa_mergekit.search.results import SearchResult
from dppa_mergekit.search.strategies import OF_ONE_MODEL, STRATEGIES
from dppa_mergekit.search.trials import (
    CallableScorer,
    FolderTrials,
    MemoryTrials,
    Trials,
)
from dppa_mergekit.storage.journal import Journal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class FactorSearch(RecipeSearch):
    """A search for the factors of every domain's fine-tuned model; see `RecipeSearch`.

    Attributes:
        tune_dense: Whether `amplify_dense` is tuned too.
        prompts: Texts that fine-tuned models teach by; None for the prompts of their dev tasks.
    """

    guarded: ClassVar[bool] = False

    tune_dense: bool = False
    prompts: Sequence[str] | None = None

    def check(self) -> None:
        """Refuse what can be refused before anything is loaded.

        Raises:
            DppaError: As for every recipe search; or the recipe's method has no factors, the
                strategy needs a model in memory and there is none, or two domains have one model.
        """
        check_amplified(self.recipe, self.options)
        if not self.teaches and STRATEGIES[self.options.strategy].needs_teacher:
            raise DppaError(
                f"--strategy {self.options.strategy} needs the model in memory: give no "
                f"--score-command and no --engine vllm."
            )
        super().check()
        domain_of: dict[str, str] = {}
        for name, domain in self.tasks.domains.items():
            first = domain_of.setdefault(self._model(name), name)
            if first != name:
                raise DppaError(
                    f"Domains {first} and {name} have one model, {domain.model}, which has one set "
                    f"of factors: put their tasks into one domain."
                )

    def search(self, scoring: Scoring, journal: Journal, best: Best) -> list[SearchResult]:
        """Search the factors of all domains, as many at once as there are workers."""
        names = list(self.tasks.domains)
        at_once = 1 if self.cluster is None else min(self.cluster.workers, len(names))

        def prepare(name: str) -> None:
            self._score_fine_tuned(name, scoring, journal, best)

        def find(name: str) -> SearchResult:
            with self.open_trials(scoring, at_once) as trials_of:
                trials = trials_of(name)
                return self._domain_search(name, scoring, trials, journal, best).run()

        # All fine-tuned models come first. One that scores nothing ends the search, which must not
        # happen after another domain has taken hours.
        if at_once == 1:
            for name in names:
                prepare(name)
            return [find(name) for name in names]
        threads = ThreadPoolExecutor(at_once)
        try:
            list(threads.map(prepare, names))
            return list(threads.map(find, names))
        except BaseException:
            # End the domains that still wait for workers, too.
            threads.shutdown(wait=False, cancel_futures=True)
            raise

    def trials(self, domain: str, scoring: Scoring) -> Trials:
        """Return the trials of a domain's model in this process."""
        model = self._model(domain)
        alone = self.recipe.with_only(model)
        references = partial(score_experts, {model: list(self.tasks.domains[domain].dev)})
        if not isinstance(scoring, Harness):
            loading = self.placement.loading
            return FolderTrials(
                FolderFactors(alone, model, self.workspace, self.tune_dense, loading),
                references,
                scoring,
                self.workspace,
                loading,
            )
        return TaughtFactorTrials(
            LiveFactors(alone, self.workspace, self.placement, self.tune_dense),
            references,
            scoring,
            self.placement,
            model,
            scoring.prompts if self.prompts is None else tokenize_texts(self.prompts),
            lessons_of(self.output, domain),
            self.options.per_block,
        )

    @property
    def teaches(self) -> bool:
        """Whether the trials have a teacher: those in memory do."""
        return self.score_command is None and self.engine == "transformers"

    def recipe_with(self, found: Mapping[str, Settings]) -> Recipe:
        """Return the recipe with the factors of domains."""
        recipe = method_table.without_automatic(self.recipe)
        for domain, factors in found.items():
            recipe = recipe.with_parameters(self._model(domain), factors)
        return recipe

    def subject(self) -> dict[str, object]:
        """Return the inputs of the search, part by part; the journal of others is not resumed."""
        return super().subject() | {
            "tune_dense": self.tune_dense,
            "prompts": None if self.prompts is None else list(self.prompts),
        }

    def _model(self, domain: str) -> str:
        """Return a domain's fine-tuned model, as the recipe spells it."""
        return self.recipe.spelling_of(self.tasks.domains[domain].model)

    def _domain_search(
        self, name: str, scoring: Scoring, trials: Trials, journal: Journal, best: Best
    ) -> CandidateSearch:
        return CandidateSearch(
            name,
            self._model(name),
            {task: scoring.item_count(task) for task in self.tasks.domains[name].dev},
            trials,
            self.options,
            journal,
            best_so_far=partial(best.__setitem__, name),
            batch=self.batch,
        )

    def _score_fine_tuned(self, name: str, scoring: Scoring, journal: Journal, best: Best) -> None:
        """Score a domain's fine-tuned model; without workers if the journal has its scores."""
        one_each = 1 if self.cluster is None else self.cluster.workers
        with (
            nullcontext(lambda name: self.trials(name, scoring))
            if has_fine_tuned_scores(journal, name)
            else self.open_trials(scoring, one_each)
        ) as trials_of:
            search = self._domain_search(name, scoring, trials_of(name), journal, best)
            search.score_fine_tuned()


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
    """Search the amplification factors of one fine-tuned model by any evaluation.

    The model is alone on the base, pruned, and at weight 1. Candidates are compared by the
    geometric mean of the Task-Ratios: the scores of the pruned model over those of the fine-tuned
    model (eqs. 7 and 8).

    Args:
        recipe: The recipe of the merge.
        model: The fine-tuned model, as the recipe spells it.
        score: Returns task -> score of a live model, given the model and its tokenizer. More is
            better, and the fine-tuned model itself must score above 0 on every task. It is called
            once for the fine-tuned model and once for every candidate, in order.
        options: How to search; those of `default_options` for the recipe's method where None.
        placement: Where and how models are held; on the CPU as stored where None.
        tune_dense: Whether `amplify_dense`, the factor of dense tensors, is tuned too.
        prompts: Texts that the fine-tuned model teaches by; the strategy `distill` needs them.
        workspace: A folder on a disk with room for a merged model; the system's temporary folder
            where None.

    Returns:
        The best factors found, `amplify_90`, `amplify_80`, ... down to the model's density, and
        their ratio before and after, in percent.

    Raises:
        RecipeError: The recipe has no such model, or its method has no factors.
        TasksError: The fine-tuned model does not score above 0 on a task.
        DppaError: The strategy needs prompts and there are none, or a model cannot be loaded.

    Example:
        >>> from pathlib import Path
        >>> from dppa_mergekit import Recipe, search_amplification
        >>> def score(model, tokenizer):
        ...     tokens = tokenizer("The capital of France is Paris.", return_tensors="pt")
        ...     return {"likelihood": float((-model(**tokens, labels=tokens.input_ids).loss).exp())}
        >>> recipe = Recipe.read(Path("recipe.yml"))  # doctest: +SKIP
        >>> found = search_amplification(recipe, "./math", score)  # doctest: +SKIP
        >>> print(found.factors, found.before, found.after)  # doctest: +SKIP
        {'amplify_90': 1.4, 'amplify_80': 1.1} 84.2 91.7
    """
    chosen = options or default_options(recipe.method)
    check_amplified(recipe, chosen)
    if prompts is None and STRATEGIES[chosen.strategy].needs_teacher:
        raise DppaError(f"Strategy {chosen.strategy} needs prompts: texts that the model answers.")
    named = recipe.spelling_of(model)
    room = Path(tempfile.gettempdir()) if workspace is None else workspace
    held = placement or AS_STORED
    merge = LiveFactors(recipe.with_only(named), room, held, tune_dense)
    references = partial(score_experts, {named: []})
    scorer = CallableScorer(score)
    trials: Trials
    if prompts is None:
        trials = MemoryTrials(merge, references, scorer, held)
    else:
        trials = TaughtFactorTrials(
            merge,
            references,
            scorer,
            held,
            named,
            tokenize_texts(prompts),
            per_block=chosen.per_block,
        )
    return CandidateSearch(named, named, {}, trials, chosen).run()


def default_options(method: str) -> Options:
    """Return how factors of a method are searched by default.

    Where deltas were divided by the density, their factors lie below 1.
    """
    if method in method_table.rescaled():
        return Options(low=0.1, high=1.0, downwards=True)
    return Options()


def check_amplified(recipe: Recipe, options: Options) -> None:
    """Refuse a recipe whose factors cannot be searched with these options.

    Raises:
        RecipeError: The method has no factors, or the recipe has slices and factors are wanted
            for each block.
        DppaError: The strategy is one for merges, or has no teacher and factors are wanted for each
            block.
    """
    check_has_factors(recipe)
    if options.strategy not in OF_ONE_MODEL:
        raise DppaError(
            f"Strategy {options.strategy} is for a merge; allowed are {', '.join(OF_ONE_MODEL)}."
        )
    if options.per_block and not STRATEGIES[options.strategy].needs_teacher:
        raise DppaError("--per-block needs --strategy distill: a teacher for so many factors.")
    if options.per_block and recipe.is_sliced:
        raise RecipeError(
            f"{recipe.origin}: --per-block writes gradients, which mergekit counts anew in each "
            f"slice; allowed is a recipe of whole models."
        )
