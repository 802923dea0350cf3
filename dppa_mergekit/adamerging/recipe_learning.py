"""From a recipe and prompts to the recipe with what was learned: `mergekit-dppa adamerge`.

Whatever can be refused is refused before the first step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit.adamerging.descent import Descent, LossError, descend, take_best
from dppa_mergekit.adamerging.dev_evaluation import DevEvaluation
from dppa_mergekit.adamerging.learnable import check_granularity
from dppa_mergekit.adamerging.objectives import (
    TAUGHT,
    DomainPrompts,
    check_method,
    check_objective,
    load_merge_and_losses,
)
from dppa_mergekit.adamerging.plots import draw_learning
from dppa_mergekit.adamerging.state_journal import StateJournal, state_entry
from dppa_mergekit.adamerging.states import LearningResult, states_until, warnings_about
from dppa_mergekit.adamerging.summary import learning_summary
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.recipes.references import short_name
from dppa_mergekit.report.plot_style import is_installed
from dppa_mergekit.scoring.lm_eval_harness import Harness, warn_of_public_tests
from dppa_mergekit.scoring.tasks import TasksFile
from dppa_mergekit.scoring.tuning_run import describe_inputs, journal_of, lessons_of
from dppa_mergekit.storage.journal import Journal, open_journal
from dppa_mergekit.storage.output_files import check_recipe_output, write_whole
from dppa_mergekit.storage.run_record import write_record
from dppa_mergekit.version import __version__

if TYPE_CHECKING:
    from dppa_mergekit.adamerging.objectives import Tokenize

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaMerge:
    """AdaMerging of a recipe.

    Attributes:
        recipe: The recipe of the merge, of a method whose weights or factors can be learned.
        prompts: Domain -> its prompts; empty to take the prompts of the dev tasks.
        tasks: The tasks file by which the merge is evaluated on the way; None for no evaluation.
        output: The file of the recipe with what was learned.
        objective: `distill`, `hidden`, `entropy` or `loss`; see `learn_weights`.
        descent: The settings of gradient descent.
        placement: The device and the dtype of live models.
    """

    recipe: Recipe
    prompts: Mapping[str, Sequence[Prompt]]
    tasks: TasksFile | None
    output: Path
    objective: str
    descent: Descent
    placement: Placement

    def run(self) -> LearningResult:
        """Learn, and write the recipe, a summary and a record of the run.

        If the run is interrupted, or a loss is not finite, the best state so far is written.

        Raises:
            DppaError: Something that the user gave cannot be used; raised before the first step
                where possible.
            LossError: A loss is not finite.
        """
        self._check()
        harness = None
        if self.tasks is not None:
            harness = Harness(self.tasks, self.tasks.metrics("dev"))
            warn_of_public_tests(self.tasks.metrics("dev"))
        with open_journal(self.journal, self._subject()) as journal:
            result = self._learn(harness, journal)
            self._write(result)
        for sentence in warnings_about(result, self.objective == "entropy"):
            LOG.warning(sentence)
        return result

    @property
    def journal(self) -> Path:
        """The file of the journal."""
        return journal_of(self.output)

    def _learn(self, harness: Harness | None, journal: Journal) -> LearningResult:
        """Go on from the states in the journal, or begin."""
        evaluation, sources = None, None
        if self.tasks is not None and harness is not None:
            # Before the merge is loaded, so that no two models are in memory.
            evaluation = DevEvaluation(self.recipe, self.tasks, harness, self.placement)
            sources = evaluation.score_sources(journal)
        merge, losses = load_merge_and_losses(
            self.recipe,
            self._domains(harness),
            self.objective,
            self.descent.batch_size,
            self.placement,
            self.output.resolve().parent,
        )
        evaluate = None
        if evaluation is not None and sources is not None:
            evaluate = evaluation.evaluator(merge, sources)
        store = StateJournal(journal)
        try:
            return descend(merge, losses, self.descent, store, evaluate)
        except (KeyboardInterrupt, LossError):
            states = states_until(store.states(), self.descent.steps)
            if states:
                self._write(take_best(merge, self.descent.granularity, states))
            raise

    def _check(self) -> None:
        """Refuse all that can be refused without loading anything."""
        check_method(self.recipe)
        check_granularity(self.recipe, self.descent.granularity)
        check_recipe_output(self.output)
        if self.tasks is not None:
            self._check_domains(self.tasks)
        elif not self.prompts:
            raise DppaError("There are no prompts: give --prompts, or a tasks file with --tasks.")
        if self.objective in TAUGHT:
            self._check_taught()
        check_objective(self.objective, self.prompts)

    def _check_taught(self) -> None:
        """Refuse a model that no prompts are for."""
        taught = {self._teacher(name) for name in self._names()}
        for model in self.recipe.fine_tuned():
            if model in taught:
                continue
            if self.tasks is None:
                way = f"give --prompts {short_name(model)}.txt"
            elif self.prompts:
                way = "give a prompts file for every domain, also one with this model"
            else:
                way = "add a domain with this model to the tasks file"
            raise DppaError(
                f"There are no prompts for {model}, whose skill would be lost: {way}, or leave "
                f"the model out of the recipe."
            )

    def _check_domains(self, tasks: TasksFile) -> None:
        """Refuse a domain without model or dev tasks, and prompts that belong to no domain."""
        if not tasks.domains:
            raise DppaError("The tasks file has no domains; AdaMerging needs at least one.")
        for name, domain in tasks.domains.items():
            self.recipe.spelling_of(domain.model)
            if not domain.dev:
                raise DppaError(f"Domain {name} has no dev tasks to be evaluated by.")
        for name in self.prompts:
            if name not in tasks.domains:
                raise DppaError(
                    f"The tasks file has no domain {name}, after which a prompts file is named; "
                    f"its domains are {', '.join(tasks.domains)}."
                )

    def _names(self) -> list[str]:
        """The domains whose prompts are learned from."""
        if self.prompts:
            return list(self.prompts)
        return [] if self.tasks is None else list(self.tasks.domains)

    def _domains(self, harness: Harness | None) -> dict[str, DomainPrompts]:
        """Domain -> its prompts, given or taken from the dev tasks."""
        domains = {}
        for name in self._names():
            teacher = self._teacher(name) if self.objective in TAUGHT else None
            file = lessons_of(self.output, name)
            if self.prompts:
                domains[name] = DomainPrompts.of_texts(self.prompts[name], teacher, file)
            else:
                domains[name] = DomainPrompts((), self._tokenize_dev(name, harness), teacher, file)
        return domains

    def _teacher(self, domain: str) -> str:
        """Return the model that teaches a domain: the tasks file's, or the one of the same name."""
        if self.tasks is not None:
            return self.recipe.spelling_of(self.tasks.domains[domain].model)
        models = [model for model in self.recipe.fine_tuned() if short_name(model) == domain]
        if len(models) != 1:
            names = [short_name(model) for model in self.recipe.fine_tuned()]
            once = [name for name in names if names.count(name) == 1]
            way = f"name the prompts file after one of {', '.join(once)}, or " if once else ""
            raise DppaError(
                f"It is not clear which model teaches {domain}: {way}give --tasks, which names "
                f"the model of each domain."
            )
        return models[0]

    def _tokenize_dev(self, domain: str, harness: Harness | None) -> Tokenize:
        """Return a function of a live model and its tokenizer: the tokens of the dev prompts."""
        assert self.tasks is not None
        assert harness is not None
        items = {task: range(harness.item_count(task)) for task in self.tasks.domains[domain].dev}
        return partial(harness.prompts, items=items)

    def _write(self, result: LearningResult) -> None:
        """Write the recipe, the summary, the plot and the record of the run."""
        write_whole(self.output, result.recipe.to_yaml(self._comment(result)))
        write_whole(
            self.output.with_suffix(".md"),
            learning_summary(result, self.objective, self.descent.granularity),
        )
        if is_installed():
            draw_learning(result, self.output.with_suffix(".png"))
        best = {"step": result.best.step, "steps": result.states[-1].step}
        write_record(self.output, "adamerge", self._subject(), [best, state_entry(result.best)])

    def _comment(self, result: LearningResult) -> str:
        """Return lines of text that say how the recipe was made."""
        scored = "" if result.best.evaluation is None else ", the best by the dev tasks"
        return (
            f"{result.words.capitalize()} by mergekit-dppa adamerge {__version__}, from "
            f"{Path(self.recipe.origin).name}\n"
            f"objective {self.objective}, granularity {self.descent.granularity}, after "
            f"{result.best.step} of {result.states[-1].step} steps{scored}"
        )

    def _subject(self) -> dict[str, object]:
        """Return all that the states depend on; a journal of another subject is refused."""
        descent = asdict(self.descent)
        # A run with more steps, or more patience, goes on where the earlier one ended.
        del descent["steps"], descent["patience"]
        by_lm_eval = self.tasks is not None
        return {
            **describe_inputs(self.recipe, self.tasks, self.placement, by_lm_eval),
            "prompts": {
                name: [asdict(prompt) for prompt in prompts]
                for name, prompts in self.prompts.items()
            },
            "objective": self.objective,
            "descent": descent,
        }
