"""What is set in a search for factors: one fine-tuned model alone on the base, pruned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from dppa_mergekit.adamerging.teacher import ANSWER_TOKENS
from dppa_mergekit.adamerging.teaching_model import check_words, collect_lessons
from dppa_mergekit.checkpoints.loading_options import DEFAULT_LOADING, LoadingOptions
from dppa_mergekit.combination.contribution import Combined
from dppa_mergekit.errors import DppaError, RecipeError
from dppa_mergekit.live.amplified_model import AmplifiedModel
from dppa_mergekit.live.context import shorten
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.live.source_model import SourceModel
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.parameters import AMPLIFICATION_NAMES, AMPLIFY_DENSE
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.ratios import Items
from dppa_mergekit.search.candidates import Proposal, Settings, one_number
from dppa_mergekit.search.distillation import FactorDescent, distill
from dppa_mergekit.search.trials import MemoryTrials

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DENSE = AMPLIFY_DENSE.name
"""The factor of dense tensors: embeddings, norms, biases."""

LESSONS_AT_ONCE = 16
"""Prompts that a teacher answers at once."""

Prompts: TypeAlias = Callable[
    ["PreTrainedModel", "PreTrainedTokenizerBase", Items], list[list[int]]
]
"""Returns the tokens of the prompts of some items, given a live model and its tokenizer."""


@dataclass(frozen=True)
class LiveFactors:
    """A pruned model in memory whose factors can be set; see `LiveMerge`.

    Attributes:
        recipe: The recipe of the model alone.
        workspace: A folder on a disk that has room for the merged model.
        placement: Where and how the model is held.
        tune_dense: Whether `amplify_dense` is set too.
    """

    recipe: Recipe
    workspace: Path
    placement: Placement = AS_STORED
    tune_dense: bool = False

    @cached_property
    def amplified(self) -> AmplifiedModel:
        """The pruned model, loaded when first needed."""
        return AmplifiedModel.load(
            self.recipe,
            self.workspace,
            self.placement,
            self.tune_dense,
        )

    def parameters(self) -> list[str]:
        """Return the factors that the pruned model has."""
        return _factor_names(self.recipe, self.amplified.rates, self.tune_dense)

    def apply(self, settings: Settings) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Write the weights for factors; return the live model and its tokenizer."""
        amplified = self.amplified
        factors = {rate: settings[AMPLIFICATION_NAMES[rate]] for rate in amplified.rates}
        dense = settings.get(DENSE)
        amplified.set_factors(factors, None if dense is None else one_number(dense))
        return amplified.model, amplified.tokenizer


@dataclass(frozen=True)
class FolderFactors:
    """A pruned model that is merged anew for every candidate; see `FolderMerge`.

    Attributes:
        recipe: The recipe of the model alone.
        model: The fine-tuned model, as the recipe spells it.
        workspace: A folder on a disk that has room for the merged model.
        tune_dense: Whether `amplify_dense` is set too.
        loading: How models are loaded.
    """

    recipe: Recipe
    model: str
    workspace: Path
    tune_dense: bool = False
    loading: LoadingOptions = DEFAULT_LOADING

    @cached_property
    def _rates(self) -> Sequence[int]:
        """The pruning rates, highest first, which one merge reveals."""
        found: set[int] = set()

        def listen(combined: Combined) -> None:
            for contribution in combined.contributions:
                found.update(contribution.pruned.pruning.rates)

        with merge_into_folder(self.recipe, self.workspace, listen, self.loading):
            return sorted(found, reverse=True)

    def parameters(self) -> list[str]:
        """Return the factors that the pruned model has."""
        return _factor_names(self.recipe, self._rates, self.tune_dense)

    def recipe_with(self, settings: Settings) -> Recipe:
        """Return the recipe of the model alone with factors."""
        return self.recipe.with_parameters(self.model, settings)


@dataclass(frozen=True)
class TaughtFactorTrials(MemoryTrials):
    """Trials of factors in memory, with the fine-tuned model as a teacher; see `TeachingTrials`.

    Attributes:
        merge: The pruned model.
        model: The fine-tuned model, as the recipe spells it.
        prompts: Returns the prompts that the fine-tuned model answers.
        lessons: The file that keeps its answers; None to keep none.
        per_block: Whether factors are proposed for each block.
    """

    merge: LiveFactors
    model: str
    prompts: Prompts
    lessons: Path | None = None
    per_block: bool = False

    def propose(self, items: Items, low: float, high: float, seed: int) -> Proposal:
        """Return the factors that bring the pruned model nearest to the fine-tuned one.

        Raises:
            DppaError: The two models do not share their tokens, or factors are wanted for each
                block and the blocks are not in one stack.
        """
        teacher = SourceModel(self.model, self.placement)
        lessons = collect_lessons(
            teacher,
            lambda model, tokenizer: shorten(
                self.model, self.prompts(model, tokenizer, items), model, ANSWER_TOKENS
            ),
            LESSONS_AT_ONCE,
            self.lessons,
        )
        amplified = self.merge.amplified
        check_words(teacher, lessons, amplified.model, amplified.tokenizer)
        if self.per_block and not amplified.layers:
            raise DppaError(
                f"Factors for each block need all blocks of {self.model} in one stack; an encoder "
                f"and a decoder are two stacks."
            )
        found = distill(amplified, lessons, low, high, FactorDescent(seed=seed), self.per_block)
        dense = {DENSE: [1.0]} if self.merge.tune_dense else {}
        return {AMPLIFICATION_NAMES[rate]: factors for rate, factors in found.items()} | dense


def tokenize_texts(texts: Sequence[str]) -> Prompts:
    """Return prompts that are the same texts whatever the items."""

    def tokenize(
        model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Items
    ) -> list[list[int]]:
        return [tokenizer(text)["input_ids"] for text in texts]

    return tokenize


def _factor_names(alone: Recipe, rates: Sequence[int], tune_dense: bool) -> list[str]:
    if not rates:
        raise RecipeError(
            f"{alone.origin} prunes no linear of {', '.join(alone.fine_tuned())}, so there are no "
            f"partitions whose factors could be tuned."
        )
    return [AMPLIFICATION_NAMES[rate] for rate in rates] + ([DENSE] if tune_dense else [])
