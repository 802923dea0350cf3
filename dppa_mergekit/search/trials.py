"""Where candidates are tried: in memory, or in a merged folder that vLLM or a command scores.

Trials are composed. What is set is a `LiveMerge` or a `FolderMerge`: the factors of one model in
`factor_trials`, the weights of a merge in `weight_trials`, its factors in `merge_factor_search`,
both in `weight_factor_search`. Where it is scored is `MemoryTrials` or `FolderTrials`.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from dppa_mergekit.checkpoints.loading_options import DEFAULT_LOADING, LoadingOptions
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.live.source_model import SourceModel
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.engines import FolderScorer
from dppa_mergekit.scoring.ratios import Items, Score, Scores
from dppa_mergekit.search.candidates import Proposal, Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Trial: TypeAlias = tuple[Settings, Items]
"""Settings, and the items on which they are tried."""

References: TypeAlias = Callable[[Items, Callable[[str, Items], Scores]], Scores]
"""Scores the models before the merge on items, given a function that scores one of them."""


class Trials(Protocol):
    """Scores the candidates of one search."""

    def score_fine_tuned(self, items: Items) -> Scores:
        """Return the scores of the fine-tuned models, and of the base model on guard tasks."""
        ...

    def parameters(self) -> list[str]:
        """Return the names of what is set: `amplify_90`, ... or what has a weight."""
        ...

    def score_all(self, trials: Sequence[Trial]) -> Iterator[Scores]:
        """Yield the scores of several trials, in order, as they come."""
        ...


@runtime_checkable
class TeachingTrials(Trials, Protocol):
    """Trials of one model whose fine-tuned model can teach."""

    def propose(self, items: Items, low: float, high: float, seed: int) -> Proposal:
        """Return the factors that bring the pruned model nearest to the fine-tuned one.

        Args:
            items: The items to learn from.
            low: The least factor.
            high: The largest factor.
            seed: Seed of the order of the lessons.
        """
        ...


class Scorer(Protocol):
    """Scores live models."""

    def score(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Items
    ) -> Scores:
        """Return the scores on some items of some tasks."""
        ...


class LiveMerge(Protocol):
    """A merge in memory whose factors or weights can be set; loaded when first needed."""

    def parameters(self) -> list[str]:
        """Return the names of what is set."""
        ...

    def apply(self, settings: Settings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Write the weights for settings; return the live model and its tokenizer."""
        ...


class FolderMerge(Protocol):
    """A merge that is made anew for every candidate."""

    def parameters(self) -> list[str]:
        """Return the names of what is set."""
        ...

    def recipe_with(self, settings: Settings) -> Recipe:
        """Return the recipe of the merge with settings."""
        ...


class OneByOne(ABC):
    """Trials that are made one after another."""

    @abstractmethod
    def score(self, settings: Settings, items: Items) -> Scores:
        """Return the scores of one trial."""

    def score_all(self, trials: Sequence[Trial]) -> Iterator[Scores]:
        """Yield the scores of several trials, making a trial when its scores are asked for."""
        for settings, items in trials:
            yield self.score(settings, items)


@dataclass(frozen=True)
class MemoryTrials(OneByOne):
    """Trials on a live model.

    Attributes:
        merge: The merge in memory.
        references: Scores the models before the merge.
        scorer: Scores live models.
        placement: Where and how models are held.
    """

    merge: LiveMerge
    references: References
    scorer: Scorer
    placement: Placement

    def score_fine_tuned(self, items: Items) -> Scores:
        """Return the scores of the models before the merge."""

        def score(model: str, own: Items) -> Scores:
            return self.scorer.score(*SourceModel(model, self.placement).load(), own)

        return self.references(items, score)

    def parameters(self) -> list[str]:
        """Return the names of what is set."""
        return self.merge.parameters()

    def score(self, settings: Settings, items: Items) -> Scores:
        """Return the scores of the live model with settings."""
        return self.scorer.score(*self.merge.apply(settings), items)


@dataclass(frozen=True)
class FolderTrials(OneByOne):
    """Trials in merged folders.

    Attributes:
        merge: The merge.
        references: Scores the models before the merge.
        scorer: Scores folders.
        workspace: A folder on a disk that has room for the merged model.
        loading: How models are loaded.
    """

    merge: FolderMerge
    references: References
    scorer: FolderScorer
    workspace: Path
    loading: LoadingOptions = DEFAULT_LOADING

    def score_fine_tuned(self, items: Items) -> Scores:
        """Return the scores of the models before the merge."""
        placement = Placement(loading=self.loading)

        def score(model: str, own: Items) -> Scores:
            source = SourceModel(model, placement)
            return self.scorer.run(source.folder(), own, source.tokenizer_folder())

        return self.references(items, score)

    def parameters(self) -> list[str]:
        """Return the names of what is set."""
        return self.merge.parameters()

    def score(self, settings: Settings, items: Items) -> Scores:
        """Return the scores of the merged folder with settings."""
        recipe = self.merge.recipe_with(settings)
        with merge_into_folder(recipe, self.workspace, None, self.loading) as folder:
            return self.scorer.run(folder, items)


@dataclass(frozen=True)
class ScoreCommand:
    """A user's shell command that scores a folder as a whole; see `FolderScorer`.

    Attributes:
        text: The command, with {model} in place of the folder. It prints JSON, task -> score.
    """

    text: str

    def item_count(self, task: str) -> int:
        """Return 0: the command scores every task as a whole."""
        return 0

    def run(self, folder: Path, items: Items, tokenizer_folder: Path | None = None) -> Scores:
        """Return the scores on some tasks; the command is given the model's folder alone.

        Raises:
            DppaError: The command fails, or prints something else than JSON with a finite score for
                every task.
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
                raise DppaError(
                    f"The score command printed {score.value} for task {task}; allowed is a finite "
                    f"number."
                )
        return scores


@dataclass(frozen=True)
class CallableScorer:
    """Scores by any function of a live model and its tokenizer, which returns task -> score."""

    function: Callable[[PreTrainedModel, PreTrainedTokenizerBase], Mapping[str, float]]

    def score(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Items
    ) -> Scores:
        """Return the scores of all tasks of the function, each as a whole."""
        scores = self.function(model, tokenizer)
        return {task: Score(float(score)) for task, score in scores.items()}


def require_teacher(trials: Trials, strategy: str) -> TeachingTrials:
    """Return trials whose fine-tuned model can teach.

    Raises:
        DppaError: There is no teacher in them.
    """
    if not isinstance(trials, TeachingTrials):
        raise DppaError(
            f"Strategy {strategy} needs a teacher: one fine-tuned model in memory, and prompts."
        )
    return trials
