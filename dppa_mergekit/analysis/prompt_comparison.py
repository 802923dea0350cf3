"""How far pruning and merging move models from their own answers to prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tqdm import tqdm

from dppa_mergekit import method_table
from dppa_mergekit.adamerging.losses import Teaching
from dppa_mergekit.adamerging.objectives import DomainPrompts
from dppa_mergekit.adamerging.teacher import ANSWER_TOKENS, Lessons
from dppa_mergekit.adamerging.teaching_model import check_words, collect_lessons
from dppa_mergekit.analysis.evidence import INPUTS, SIGNS, SUM
from dppa_mergekit.analysis.results import Divergences, MergeDivergences
from dppa_mergekit.checks.mergekit_schema import METHODS
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.live.source_model import SourceModel
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.observation.observe import Observing
from dppa_mergekit.observation.recipe_activations import observe_into
from dppa_mergekit.observation.texts import Reading
from dppa_mergekit.parameters import (
    ACTIVATIONS,
    AMPLIFICATIONS,
    AMPLIFY_DENSE,
    DENSITY,
    WEIGHT,
)
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes.recipe import Recipe

DARE_LINEAR = "dare_linear"
"""mergekit's method, which prunes every tensor."""

WEIGHTS = (0.3, 0.5, 0.7, 1.0)
"""Weights that all models share, of which the best counts."""

SUMS = {
    method_table.DARE_DPA.name: SUM,
    method_table.DP.name: SUM,
    method_table.DPPA_TIES.name: SIGNS,
}
"""Method -> how it combines deltas, in words; of methods with a weight for every model."""

OBSERVING = Observing(96, Reading(ANSWER_TOKENS, 8))
"""How models are observed, for combinations by inputs."""

BATCH = 16
"""The number of prompts in a batch."""


@dataclass(frozen=True)
class PromptComparison:
    """Models with prompts, and where they are merged.

    Attributes:
        recipe: The recipe, whose densities count.
        prompts: Fine-tuned model, as the recipe spells it -> its prompts.
        placement: The device and the dtype of live models.
        workspace: A folder on a disk with room for a merged model.
    """

    recipe: Recipe
    prompts: Mapping[str, Sequence[Prompt]]
    placement: Placement
    workspace: Path

    def lessons(self) -> dict[str, Lessons]:
        """Let every model answer its prompts.

        Raises:
            DppaError: A model cannot be loaded, or a prompt cannot be used.
        """
        return {
            model: collect_lessons(
                SourceModel(model, self.placement),
                partial(DomainPrompts.of_texts(prompts, model).tokens, model, ANSWER_TOKENS),
                BATCH,
                None,
            )
            for model, prompts in tqdm(self.prompts.items(), desc="answers", unit="model", delay=2)
        }

    def pruned(self, model: str, lessons: Lessons) -> Divergences:
        """Return how far a model moves from its answers when it is pruned.

        Args:
            model: A fine-tuned model, as the recipe spells it.
            lessons: Its lessons.
        """
        found = {
            method: self._diverge(
                self._load(pruned_alone(self.recipe, model, method)), model, lessons
            )
            for method in (DARE_LINEAR, method_table.DARE_DPA.name, method_table.DP.name)
        }
        dare_linear, dare, dp = found.values()
        return Divergences(dare, dp, len(self.prompts[model]), dare_linear)

    def merged(self, lessons: Mapping[str, Lessons]) -> list[MergeDivergences]:
        """Return how far merges move from the answers of all models, for each combination.

        Args:
            lessons: Fine-tuned model -> its lessons, for all models of the recipe.
        """
        found = [self._best_sum(method, words, lessons) for method, words in SUMS.items()]
        with TemporaryDirectory(prefix=".dppa-", dir=self.workspace) as folder:
            files = {
                model: observe_into(
                    Path(folder) / f"{number}.safetensors",
                    model,
                    self.prompts[model],
                    OBSERVING,
                    self.placement,
                ).path
                for number, model in enumerate(lessons)
            }
            for method in (method_table.DPPA_REGMEAN.name, method_table.DARE_REGMEAN.name):
                recipe = merged_by(self.recipe, method)
                for model, path in files.items():
                    recipe = recipe.with_parameters(model, {ACTIVATIONS.name: path})
                merge = self._load(recipe)
                found.append(MergeDivergences(INPUTS, method, None, self._of_all(merge, lessons)))
        return found

    def _best_sum(
        self, method: str, words: str, lessons: Mapping[str, Lessons]
    ) -> MergeDivergences:
        """Return the divergences of a merge with the common weight that serves best."""
        merge = self._load(merged_by(self.recipe, method))
        found = []
        for weight in tqdm(WEIGHTS, desc=method, unit="weight", delay=2):
            merge.set_weights(dict.fromkeys(lessons, weight))
            found.append(MergeDivergences(words, method, weight, self._of_all(merge, lessons)))
        return min(found, key=lambda merge: merge.mean)

    def _load(self, recipe: Recipe) -> WeightedMerge:
        return WeightedMerge.load(recipe, self.workspace, self.placement)

    def _of_all(self, merge: WeightedMerge, lessons: Mapping[str, Lessons]) -> dict[str, float]:
        return {model: self._diverge(merge, model, own) for model, own in lessons.items()}

    def _diverge(self, merge: WeightedMerge, model: str, lessons: Lessons) -> float:
        """Return the mean divergence of a merge from a model's answers, in nats."""
        check_words(SourceModel(model, self.placement), lessons, merge.model, merge.tokenizer)
        teaching = Teaching(lessons)
        total = 0.0
        with torch.no_grad():
            for batch in torch.split(torch.arange(teaching.number), BATCH):
                total += float(teaching.of(merge.model, batch)) * len(batch)
        return total / teaching.number


def pruned_alone(recipe: Recipe, model: str, method: str) -> Recipe:
    """Return a recipe of one model alone, pruned by a method at its density, all factors 1."""
    return _by(recipe.with_only(model), method)


def merged_by(recipe: Recipe, method: str) -> Recipe:
    """Return a recipe of all models by a method, at weights and lambda 1 and factors of 1.

    A sum is not normalized. By inputs, `normalize` stays, and the merge finds factors where
    `amplify` is auto.
    """
    merged = _by(recipe, method).with_shared({"lambda": 1.0})
    if not method_table.is_by_inputs(method):
        merged = merged.with_shared({"normalize": False})
    for model in merged.fine_tuned():
        merged = merged.with_parameters(model, {WEIGHT.name: 1.0})
    return merged


def _by(recipe: Recipe, method: str) -> Recipe:
    """Return a recipe with another method, at its densities and factors of 1."""
    density = float(str(DENSITY.default))
    changed = recipe.with_default(DENSITY.name, density).with_method(
        method, METHODS[method].parameters
    )
    if method in method_table.amplified():
        for model in changed.fine_tuned():
            changed = changed.with_parameters(model, _FACTORS_OF_ONE)
    return changed


_FACTORS_OF_ONE = {parameter.name: 1.0 for parameter in (*AMPLIFICATIONS, AMPLIFY_DENSE)}
