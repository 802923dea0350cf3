"""Where candidates of one model are tried: in memory, or in a folder that a command scores.

A bench knows one fine-tuned model of a recipe: it scores the model as it is, and pruned, alone on
the base, with any factors.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dppa_mergekit.adamerging.teacher import ANSWER_TOKENS
from dppa_mergekit.adamerging.teaching_model import check_words, collect_lessons
from dppa_mergekit.adamerging.tokenization import shorten
from dppa_mergekit.combination.contribution import Combined
from dppa_mergekit.errors import DppaError, RecipeError
from dppa_mergekit.live.amplified_model import AmplifiedModel
from dppa_mergekit.live.source_model import AS_STORED, Placement, SourceModel
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.recipes import Recipe, Setting, at_layer
from dppa_mergekit.scoring.ratios import Items, Score, Scores
from dppa_mergekit.search.distillation import Descent, distill

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DENSE = "amplify_dense"


Proposal = dict[str, list[float]]
"""Factor -> what is proposed for it: one value, or one for each layer, first to last."""

Trial = tuple[Mapping[str, Setting], Items]
"""Factors, or weights, and the items on which they are tried."""


class Bench(Protocol):
    """Where the candidates of one model, or of one merge, are tried."""

    def dense(self, items: Items) -> Scores:
        """The scores of the fine-tuned model as it is."""
        ...

    def parameters(self) -> list[str]:
        """The factors that the pruned model has: `amplify_90`, ... down to its density."""
        ...

    def score(self, factors: Mapping[str, Setting], items: Items) -> Scores:
        """The scores of the pruned model with factors, each named as in `parameters`."""
        ...

    def score_all(self, trials: Sequence[Trial]) -> Iterator[Scores]:
        """The scores of several trials, in order, one by one as they come."""
        ...

    def distill(self, items: Items, low: float, high: float, seed: int) -> Proposal:
        """The factors by which the pruned model is likest to the fine-tuned one, within a range."""
        ...


class Scorer(Protocol):
    """Scores live models; `harness.Harness` does it by lm-eval."""

    def score(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Items
    ) -> Scores:
        """The scores on some items of some tasks."""
        ...

    def prompts(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Items
    ) -> list[list[int]]:
        """The tokens of their prompts."""
        ...


class OneByOne(ABC):
    """A bench that makes one trial after the other."""

    @abstractmethod
    def score(self, factors: Mapping[str, Setting], items: Items) -> Scores:
        """The scores of one trial."""

    def score_all(self, trials: Sequence[Trial]) -> Iterator[Scores]:
        """The scores of several, each when it is asked for."""
        for factors, items in trials:
            yield self.score(factors, items)


@dataclass
class LiveBench(OneByOne):
    """One resident model whose factors are set in memory; loaded when it is first needed.

    Attributes:
        recipe: Of the model alone.
        model: The fine-tuned model, as the recipe spells it.
        scorer: Of live models.
        workspace: A folder on a disk that has room for the merged model.
        placement: Where and how models are held.
        tune_dense: Whether `amplify_dense` is one of the factors.
        prompts: What the fine-tuned model teaches by; the tasks' own prompts where None.
        lessons: Where its lessons are kept; nowhere if None.
        batch_size: Of the teaching.
        per_block: Whether the teacher proposes factors for each block.
    """

    recipe: Recipe
    model: str
    scorer: Scorer
    workspace: Path
    placement: Placement = AS_STORED
    tune_dense: bool = False
    prompts: Sequence[str] | None = None
    lessons: Path | None = None
    batch_size: int = 16
    per_block: bool = False
    _resident: AmplifiedModel | None = field(default=None, init=False)

    def dense(self, items: Items) -> Scores:
        """The scores of the fine-tuned model as it is."""
        return self.scorer.score(*self._unmerged.load(), items)

    @property
    def _unmerged(self) -> SourceModel:
        return SourceModel(self.model, self.placement)

    def parameters(self) -> list[str]:
        """The factors that the pruned model has."""
        return _named(self._loaded().rates, self.tune_dense)

    def score(self, factors: Mapping[str, Setting], items: Items) -> Scores:
        """The scores of the pruned model with factors."""
        resident = self._loaded()
        of_rates = {rate: factors[f"amplify_{rate}"] for rate in resident.rates}
        dense = factors.get(DENSE)
        resident.set_factors(of_rates, None if dense is None else at_layer(dense, 0, 1))
        return self.scorer.score(resident.model, resident.tokenizer, items)

    def distill(self, items: Items, low: float, high: float, seed: int) -> Proposal:
        """The factors by which the pruned model is likest to the fine-tuned one."""
        lessons = collect_lessons(
            self._unmerged,
            lambda model, tokenizer: self._prompts(model, tokenizer, items),
            self.batch_size,
            self.lessons,
        )
        resident = self._loaded()
        check_words(self._unmerged, lessons, resident.model, resident.tokenizer)
        if self.per_block and not resident.layers:
            raise DppaError(
                "Factors for each block need all blocks in one stack; an encoder beside a decoder "
                "are two."
            )
        found = distill(resident, lessons, low, high, Descent(seed=seed), self.per_block)
        dense = {DENSE: [1.0]} if self.tune_dense else {}
        return {f"amplify_{rate}": factors for rate, factors in found.items()} | dense

    def _prompts(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Items
    ) -> list[list[int]]:
        tokens = (
            self.scorer.prompts(model, tokenizer, items)
            if self.prompts is None
            else [tokenizer(text)["input_ids"] for text in self.prompts]
        )
        return shorten(self.model, tokens, model, ANSWER_TOKENS)

    def _loaded(self) -> AmplifiedModel:
        if self._resident is None:
            self._resident = AmplifiedModel.load(
                self.recipe,
                self.workspace,
                self.placement.device,
                self.placement.dtype,
                self.tune_dense,
                self.placement.trust_remote_code,
            )
        return self._resident


@dataclass
class FolderBench(OneByOne):
    """Merged folders, which a command of the user's scores as a whole.

    Attributes:
        recipe: Of the model alone.
        model: The fine-tuned model, as the recipe spells it.
        command: What scores them.
        workspace: A folder on a disk that has room for the merged model.
        tune_dense: Whether `amplify_dense` is one of the factors.
        trust_remote_code: As mergekit has it.
    """

    recipe: Recipe
    model: str
    command: ScoreCommand
    workspace: Path
    tune_dense: bool = False
    trust_remote_code: bool = False
    _rates: set[int] = field(default_factory=set, init=False)

    def dense(self, items: Items) -> Scores:
        """The scores of the fine-tuned model as it is."""
        return self.command.run(
            SourceModel(self.model, Placement(trust_remote_code=self.trust_remote_code)).folder(),
            items,
        )

    def parameters(self) -> list[str]:
        """The factors that the pruned model has."""
        if not self._rates:
            with merge_into_folder(
                self.recipe, self.workspace, self._listen, self.trust_remote_code
            ):
                pass
        return _named(sorted(self._rates, reverse=True), self.tune_dense)

    def score(self, factors: Mapping[str, Setting], items: Items) -> Scores:
        """The scores of the pruned model with factors."""
        recipe = self.recipe.with_parameters(self.model, factors)
        with merge_into_folder(recipe, self.workspace, None, self.trust_remote_code) as folder:
            return self.command.run(folder, items)

    def distill(self, items: Items, low: float, high: float, seed: int) -> Proposal:
        """Not possible: the teacher must see inside the model."""
        raise DppaError("Strategy distill needs the model in memory; a score command has folders.")

    def _listen(self, combined: Combined) -> None:
        for contribution in combined.contributions.values():
            self._rates.update(contribution.pruned.pruning.rates)


@dataclass(frozen=True)
class ScoreCommand:
    """A command of the user's that scores a folder as a whole.

    Attributes:
        text: With {model} where the folder goes; it prints JSON, task -> score.
    """

    text: str

    def run(self, folder: Path, items: Items) -> Scores:
        """The scores on some tasks.

        Raises:
            DppaError: The command fails, or prints something else.
        """
        command = self.text.replace("{model}", shlex.quote(str(folder.resolve())))
        ended = subprocess.run(command, shell=True, capture_output=True, text=True)
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
            raise DppaError(f"The score command ended with {ended.returncode}: {last}")
        try:
            printed = json.loads(ended.stdout)
            scores = {task: Score(float(printed[task])) for task in items}
        except (ValueError, TypeError):
            raise DppaError(
                f"The score command printed {ended.stdout.strip()[:80]!r}; allowed is JSON, as in "
                f'{{"task": 0.5}}.'
            ) from None
        except KeyError as error:
            raise DppaError(f"The score command printed no score for task {error}.") from None
        for task, score in scores.items():
            if not math.isfinite(score.value):
                raise DppaError(f"The score command printed {score.value} for task {task}.")
        return scores


@dataclass(frozen=True)
class CallableScorer:
    """Scores by any function of a live model and its tokenizer: task -> score."""

    function: Callable[[PreTrainedModel, PreTrainedTokenizerBase], Mapping[str, float]]

    def score(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Items
    ) -> Scores:
        """The scores of the tasks that are asked for, as a whole."""
        scores = self.function(model, tokenizer)
        return {task: Score(float(score)) for task, score in scores.items()}

    def prompts(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Items
    ) -> list[list[int]]:
        """Not known of a function."""
        raise DppaError("Strategy distill needs prompts; give some.")


def _named(rates: Sequence[int], tune_dense: bool) -> list[str]:
    if not rates:
        raise RecipeError("The recipe prunes no linear of the model: there are no partitions.")
    return [f"amplify_{rate}" for rate in rates] + ([DENSE] if tune_dense else [])
