"""From a recipe to what its deltas are like: what `mergekit-dppa analyze` does.

mergekit plans the merge and it is not carried out. The statistics that allocation needs are taken
as a merge takes them, or come from its cache; one more pass over the linears, a tensor at a time,
finds the rest. What was found is kept, so that the same recipe is not read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import TypeAdapter
from tqdm import tqdm

from dppa_mergekit import method_table
from dppa_mergekit.adamerging.losses import Teaching
from dppa_mergekit.adamerging.teacher import ANSWER_TOKENS, Lessons
from dppa_mergekit.adamerging.teaching_model import check_words, collect_lessons
from dppa_mergekit.adamerging.tokenization import shorten
from dppa_mergekit.analysis.delta_pass import inspect_deltas
from dppa_mergekit.analysis.plots import draw_analysis
from dppa_mergekit.analysis.results import (
    Analysis,
    Divergences,
    ModelAnalysis,
    verdict,
)
from dppa_mergekit.analysis.tables import every_linear, overview
from dppa_mergekit.errors import DppaError, RecipeError
from dppa_mergekit.live.loading import load_model
from dppa_mergekit.live.source_model import Placement, SourceModel
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.merging.dry_run import dry_run
from dppa_mergekit.parameters import AMPLIFICATIONS, AMPLIFY_DENSE
from dppa_mergekit.prompts import Prompt, read_prompts
from dppa_mergekit.recipes import Recipe
from dppa_mergekit.report.plot_style import is_installed
from dppa_mergekit.storage.cache import CacheEntry, cache_entry, cache_folder
from dppa_mergekit.storage.run_record import write_record

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dppa_mergekit.merging.merge_plan import Plan

INSTEAD = "dppa"
"""Whose allocation is shown where the recipe's method has none that differs by linears."""

BATCH = 16
"""Prompts of a batch."""

_ANALYSIS = TypeAdapter(Analysis)


@dataclass(frozen=True)
class Analysing:
    """An analysis.

    Attributes:
        recipe: Of any method with a base and fine-tuned models.
        prompts: Model, as the recipe spells it -> prompts by which DARE and DP are compared; empty
            not to.
        placement: Where and how models are held that answer prompts.
        workspace: A folder on a disk that has room for a merged model.
    """

    recipe: Recipe
    prompts: Mapping[str, Sequence[Prompt]]
    placement: Placement
    workspace: Path

    def run(self) -> Analysis:
        """Read the deltas, or what was found of them before.

        Raises:
            DppaError: Whatever the user can mend.
        """
        found = self._deltas()
        if not self.prompts:
            return found
        models = [
            replace(each, divergences=self._divergences(self.recipe.named(each.model), each))
            for each in tqdm(found.models, desc="divergences", unit="model", delay=2)
        ]
        return replace(found, models=tuple(models))

    def _deltas(self) -> Analysis:
        import dppa_mergekit.methods  # noqa: F401  # registers, so that mergekit knows them
        from dppa_mergekit.merging.delta_pruning_merge import DeltaPruningMerge
        from dppa_mergekit.merging.mergekit_hooks import gathered

        recipe = allocating(self.recipe)
        with dry_run(recipe, "", trust_remote_code=self.placement.trust_remote_code):
            plan = gathered(recipe.method)
            kept = _place(plan, self.recipe)
            known = None if kept is None else kept.read()
            if known is None:
                (variant,) = [v for v in method_table.VARIANTS if v.name == recipe.method]
                known = inspect_deltas(plan, DeltaPruningMerge(variant).allocated_by)
                if kept is not None:
                    kept.write(known)
        return known

    def _divergences(self, model: str, found: ModelAnalysis) -> Divergences | None:
        prompts = self.prompts.get(model)
        if prompts is None or not 0 < found.density < 1:
            return None

        def tokens(live: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
            encoded = [tokenizer(each.text)["input_ids"] for each in prompts]
            return shorten(model, encoded, live, ANSWER_TOKENS)

        teacher = SourceModel(model, self.placement)
        lessons = collect_lessons(teacher, tokens, BATCH, None)
        dare, dp = (
            self._divergence(pruned(self.recipe, model, by), teacher, lessons) for by in (DARE, DP)
        )
        return Divergences(dare, dp, len(prompts))

    def _divergence(self, recipe: Recipe, teacher: SourceModel, lessons: Lessons) -> float:
        where = self.placement
        with merge_into_folder(recipe, self.workspace, None, where.trust_remote_code) as folder:
            live, tokenizer = load_model(folder, where.device, where.dtype, where.trust_remote_code)
        check_words(teacher, lessons, live, tokenizer)
        teaching = Teaching(lessons)
        total = 0.0
        with torch.no_grad():
            for places in torch.split(torch.arange(teaching.number), BATCH):
                total += float(teaching.of(live, places)) * len(places)
        return total / teaching.number


def prompts_of(recipe: Recipe, files: Sequence[Path]) -> dict[str, list[Prompt]]:
    """The prompts of every model: those of the files named as it is, or else of all the others.

    Raises:
        DppaError: A file cannot be read, or a model would have none.
    """
    if not files:
        return {}
    read = {path: read_prompts(path) for path in files}
    names = {model: Path(model).name for model in recipe.fine_tuned()}
    own = {path for path in read if path.stem in names.values()}
    shared = [prompt for path, prompts in read.items() if path not in own for prompt in prompts]
    found: dict[str, list[Prompt]] = {}
    for model, name in names.items():
        of_model = [p for path, prompts in read.items() if path.stem == name for p in prompts]
        found[model] = of_model or shared
        if not found[model]:
            raise DppaError(
                f"{model} has no prompts: no file is named {name}, and none is named otherwise, "
                f"to serve all models."
            )
    return found


def write(found: Analysis, recipe: Recipe, output: Path) -> Path:
    """Write `analysis.json`, tables, pictures where the extra `plots` is there, and a record.

    Returns:
        The path of `analysis.json`.
    """
    path = output / f"{FILE}.json"
    path.write_bytes(_ANALYSIS.dump_json(found, indent=1) + b"\n")
    text = f"# Deltas of {recipe.origin}\n\n{overview(found)}\n{every_linear(found)}"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    if is_installed():
        draw_analysis(found, output)
    subject: dict[str, object] = {"recipe": recipe.content}
    verdicts = [{"model": each.model, "verdict": verdict(each)} for each in found.models]
    write_record(path, "analyze", subject, verdicts)
    return path


FILE = "analysis"
"""The name of what is written, before its ending."""

DARE, DP = "dare_dpa", "dp"
"""Methods that are compared; the first at factors 1 is DARE, of the linears alone."""


def allocating(recipe: Recipe) -> Recipe:
    """The recipe by a method that allocates densities, with weights where they are missing.

    Raises:
        RecipeError: It has no base, or no fine-tuned model.
    """
    if recipe.content.get("base_model") is None:
        raise RecipeError(f"{recipe.origin} has no base_model, and without one no deltas.")
    if not recipe.fine_tuned():
        raise RecipeError(f"{recipe.origin} has no fine-tuned models, and so no deltas.")
    by_level = {each.name for each in method_table.VARIANTS if each.levels}
    content = deepcopy(recipe.content)
    if recipe.method not in by_level:
        content["merge_method"] = INSTEAD
    return Recipe(content, recipe.origin).with_start(1.0)


def pruned(recipe: Recipe, model: str, method: str) -> Recipe:
    """One model of a recipe alone, at its density, pruned by a method without amplification."""
    plain = dict.fromkeys([each.name for each in (*AMPLIFICATIONS, AMPLIFY_DENSE)], 1.0)
    alone = recipe.alone(model).with_parameters(model, plain)
    return Recipe({**alone.content, "merge_method": method}, recipe.origin)


def _place(plan: Plan, recipe: Recipe) -> CacheEntry[Analysis] | None:
    where = cache_folder()
    if where is None:
        return None
    return cache_entry(where, recipe.origin, "analyses", _ANALYSIS, plan.fingerprint())
