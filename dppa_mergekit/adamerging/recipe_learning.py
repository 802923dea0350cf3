"""From a recipe and prompts to the recipe with its weights: what `mergekit-dppa adamerge` does.

Everything that can be refused is refused before the first step.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit.adamerging.descent import Descent, LossError, learn, result
from dppa_mergekit.adamerging.objectives import (
    Domain,
    check_objective,
    merge_and_losses,
    of_prompts,
)
from dppa_mergekit.adamerging.plots import draw_learning
from dppa_mergekit.adamerging.states import Evaluation, Learned, State, warnings_of, within
from dppa_mergekit.adamerging.summary import learning_summary
from dppa_mergekit.errors import DppaError, RecipeError
from dppa_mergekit.live.source_model import AS_STORED, Placement, SourceModel, fingerprints
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.method_table import summing
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes import Recipe
from dppa_mergekit.report.plot_style import is_installed
from dppa_mergekit.scoring.lm_eval_harness import Harness, release
from dppa_mergekit.scoring.merge_objective import experts_of, objective_of, score_experts
from dppa_mergekit.scoring.ratios import Estimate, Items, Scores
from dppa_mergekit.scoring.tasks import TasksFile, check_dense, folder_hash
from dppa_mergekit.storage.journal import Entry, Journal, open_journal
from dppa_mergekit.storage.output_files import check_recipe_output, write_whole
from dppa_mergekit.storage.run_record import write_record
from dppa_mergekit.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdaMerge:
    """AdaMerging of a recipe.

    Attributes:
        recipe: Of the merge; of a method of this package with a weighted sum.
        prompts: Domain -> prompts; empty to take those of the dev tasks.
        tasks: By what the merge is evaluated on the way; None not to.
        output: Where the recipe goes, with its weights.
        objective: What is descended: `distill`, `entropy` or `loss`.
        descent: How to learn.
        placement: Where and how models are held.
    """

    recipe: Recipe
    prompts: Mapping[str, Sequence[Prompt]]
    tasks: TasksFile | None
    output: Path
    objective: str
    descent: Descent
    placement: Placement

    def run(self) -> Learned:
        """Learn, and write the recipe, a summary and a record of the run.

        Interrupted, or where a loss is not finite, the best so far is written.

        Raises:
            DppaError: Whatever the user can mend; before the first step where possible.
        """
        self._check()
        harness = None if self.tasks is None else Harness(self.tasks, self.tasks.metrics("dev"))
        with open_journal(self.journal, self._subject()) as journal:
            kept = _States(journal)
            evaluation = None
            if self.tasks is not None and harness is not None:
                evaluation = _DevScore(self.recipe, self.tasks, harness, self.placement)
                evaluation.know(journal)
            merge, losses = merge_and_losses(
                self.recipe,
                self._domains(harness),
                self.objective,
                self.descent.batch_size,
                self.placement,
                self.output.resolve().parent,
            )
            evaluate = None if evaluation is None else evaluation.of(merge)
            try:
                found = learn(merge, losses, self.descent, kept, evaluate)
            except (KeyboardInterrupt, LossError):
                states = within(kept.states(), self.descent.steps)
                if states:
                    self._write(result(merge, states))
                raise
            self._write(found)
        for sentence in warnings_of(found, self.objective == "entropy"):
            LOG.warning(sentence)
        return found

    @property
    def journal(self) -> Path:
        """The file of the journal."""
        return self.output.with_name(self.output.name + ".journal.jsonl")

    def _check(self) -> None:
        check_method(self.recipe)
        check_recipe_output(self.output)
        tasks = self.tasks
        if not self.prompts and tasks is None:
            raise DppaError("There are no prompts: give --prompts, or a tasks file with --tasks.")
        if tasks is not None:
            for name, domain in tasks.domains.items():
                self.recipe.named(domain.model)
                if not domain.dev:
                    raise DppaError(f"Domain {name} has no dev tasks to be evaluated by.")
            for name in self.prompts:
                if name not in tasks.domains:
                    raise DppaError(
                        f"The prompts of {name} are of no domain of the tasks file, which has "
                        f"{', '.join(tasks.domains)}: a file is named after its domain."
                    )
        if self.objective == "distill":
            for name in self._names():
                self._teacher(name)
        check_objective(self.objective, self.prompts)

    def _names(self) -> list[str]:
        """Of the domains whose prompts are learned from."""
        if self.prompts:
            return list(self.prompts)
        return [] if self.tasks is None else list(self.tasks.domains)

    def _domains(self, harness: Harness | None) -> dict[str, Domain]:
        """What their losses are made of."""
        found = {}
        for name in self._names():
            teacher = self._teacher(name) if self.objective == "distill" else None
            kept = self.output.with_name(f"{self.output.name}.teacher-{name}.safetensors")
            if self.prompts:
                found[name] = of_prompts(self.prompts[name], teacher, kept)
            else:
                found[name] = Domain((), self._dev_tokens(name, harness), teacher, kept)
        return found

    def _teacher(self, domain: str) -> str:
        """The fine-tuned model of a domain: by the tasks file, or the one of its name."""
        if self.tasks is not None:
            return self.recipe.named(self.tasks.domains[domain].model)
        models = [model for model in self.recipe.fine_tuned() if Path(model).name == domain]
        if len(models) != 1:
            names = ", ".join(Path(model).name for model in self.recipe.fine_tuned())
            raise DppaError(
                f"Which model teaches {domain} is not known: name the prompts file after one of "
                f"{names}, or give --tasks."
            )
        return models[0]

    def _dev_tokens(
        self, domain: str, harness: Harness | None
    ) -> Callable[[PreTrainedModel, PreTrainedTokenizerBase], list[list[int]]]:
        """The tokens of a domain's dev prompts, given a live model and its tokenizer."""
        assert self.tasks is not None
        assert harness is not None
        items = {task: range(harness.items(task)) for task in self.tasks.domains[domain].dev}
        return partial(harness.prompts, items=items)

    def _write(self, found: Learned) -> None:
        write_whole(self.output, self.recipe.weighted(found.weights).to_yaml())
        write_whole(self.output.with_suffix(".md"), learning_summary(found, self.objective))
        if is_installed():
            draw_learning(found, self.output.with_suffix(".png"))
        best = {"step": found.best.step, "steps": found.states[-1].step}
        write_record(self.output, "adamerge", self._subject(), [best, _plain(found.best)])

    def _subject(self) -> dict[str, object]:
        """What the run is of, part by part: a journal of anything else is not gone on with."""
        tasks = None
        if self.tasks is not None:
            tasks = self.tasks.model_dump(mode="json", exclude={"include_path"})
            for held in (*tasks["domains"].values(), tasks["guard"]):
                del held["test"]
        descent = asdict(self.descent)
        # More steps go on where fewer ended.
        del descent["steps"], descent["patience"]
        return {
            "version": __version__,
            "lm_eval": None if self.tasks is None else release(),
            "recipe": self.recipe.content,
            "prompts": {
                name: [asdict(each) for each in prompts] for name, prompts in self.prompts.items()
            },
            "tasks": tasks,
            "task files": None if self.tasks is None else folder_hash(self.tasks.include_path),
            "checkpoints": fingerprints(self.recipe),
            "objective": self.objective,
            "descent": descent,
            "dtype": str(self.placement.dtype),
        }


def learn_weights(
    recipe: Recipe,
    prompts: Mapping[str, Sequence[Prompt]],
    objective: str = "distill",
    descent: Descent | None = None,
    placement: Placement = AS_STORED,
    score: Callable[[PreTrainedModel, PreTrainedTokenizerBase], float] | None = None,
    workspace: Path | None = None,
) -> Learned:
    """The weights of a merge, learned on prompts.

    Args:
        recipe: Of the merge, of a method of this package with a weighted sum; its file is read by
            `Recipe.read`, and `Recipe.weighted` fills in the weights.
        prompts: Fine-tuned model, as the recipe names it -> the prompts of its domain.
        objective: `distill` (the model teaches), `entropy` (AdaMerging's own) or `loss` (of given
            completions).
        descent: How to learn.
        placement: Where and how models are held.
        score: Given the live merge and its tokenizer, how good it is: the more, the better. The
            result is the best that was met, the start included; the last where None.
        workspace: A folder on a disk with room for the merged model; the system's temporary one
            where None.

    Raises:
        DppaError: The recipe, or a prompt, cannot be used.
        LossError: A loss is not finite.
    """
    check_method(recipe)
    check_objective(objective, prompts)
    chosen = descent or Descent()
    domains = {name: of_prompts(examples, name) for name, examples in prompts.items()}
    folder = Path(tempfile.gettempdir()) if workspace is None else workspace
    merge, losses = merge_and_losses(
        recipe, domains, objective, chosen.batch_size, placement, folder
    )

    def evaluate() -> Evaluation:
        assert score is not None
        value = float(score(merge.model, merge.tokenizer))
        return Evaluation(value, Estimate(value), {})

    return learn(merge, losses, chosen, _Forgotten(), None if score is None else evaluate)


def check_method(recipe: Recipe) -> None:
    """Refuse a method of which the weights have no derivative, or no way into the merge."""
    known = summing()
    if recipe.method not in known:
        plain = " (task_arithmetic is dp at density 1)" * (recipe.method == "task_arithmetic")
        raise RecipeError(
            f"{recipe.origin}: the weights of {recipe.method} cannot be learned{plain}; allowed "
            f"are {', '.join(known)}."
        )


class _States:
    """States in a journal."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def states(self) -> list[State]:
        return [_state(entry) for entry in self._journal.entries if "step" in entry]

    def add(self, state: State) -> None:
        self._journal.add(_plain(state))


class _Forgotten:
    """States that nobody keeps."""

    def states(self) -> list[State]:
        return []

    def add(self, state: State) -> None:
        pass


def _plain(state: State) -> Entry:
    return asdict(state)


def _state(entry: Entry) -> State:
    from pydantic import TypeAdapter

    return TypeAdapter(State).validate_python(entry)


@dataclass
class _DevScore:
    """Evaluation by the dev tasks of a tasks file."""

    recipe: Recipe
    tasks: TasksFile
    harness: Harness
    placement: Placement
    dense: Mapping[str, float] | None = None

    def know(self, journal: Journal) -> None:
        """Score the unmerged models, unless the journal has that already."""
        for entry in journal.entries:
            if isinstance(held := entry.get("dense"), dict):
                self.dense = held
                return

        def score(model: str, items: Items) -> Scores:
            return self.harness.score(*SourceModel(model, self.placement).load(), items)

        scores = score_experts(experts_of(self.tasks, self.recipe), self._items(), score)
        self.dense = {task: score.value for task, score in scores.items()}
        check_dense(self.dense)
        journal.add({"dense": dict(self.dense)})

    def of(self, merge: WeightedMerge) -> Callable[[], Evaluation]:
        """Evaluates the live merge."""
        assert self.dense is not None
        objective = objective_of(self.tasks, self.dense)

        def evaluate() -> Evaluation:
            scores = self.harness.score(merge.model, merge.tokenizer, self._items())
            return Evaluation(
                objective.exact(scores), objective.estimate(scores), objective.parts(scores)
            )

        return evaluate

    def _items(self) -> dict[str, Sequence[int]]:
        return {task: range(self.harness.items(task)) for task in self.tasks.metrics("dev")}
