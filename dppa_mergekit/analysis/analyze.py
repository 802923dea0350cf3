"""Analyse the deltas of a recipe; `mergekit-dppa analyze` runs it.

mergekit plans the merge but does not carry it out. The statistics for the allocation are measured
as in a merge, or come from a merge's cache. A further pass over the linears, a tensor at a time,
finds the rest. The results are cached, so that the same recipe is not read twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter
from tqdm import tqdm

from dppa_mergekit import method_table
from dppa_mergekit.analysis.advice import verdicts
from dppa_mergekit.analysis.delta_pass import inspect_deltas
from dppa_mergekit.analysis.plots import draw_analysis
from dppa_mergekit.analysis.prompt_comparison import PromptComparison
from dppa_mergekit.analysis.results import Analysis, MergeDivergences
from dppa_mergekit.analysis.tables import every_linear, overview
from dppa_mergekit.errors import DppaError, RecipeError
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.merging.dry_run import dry_run
from dppa_mergekit.prompts import Prompt, read_prompts
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.recipes.references import short_name
from dppa_mergekit.report.plot_style import is_installed
from dppa_mergekit.storage.cache import CacheEntry, cache_entry, cache_folder
from dppa_mergekit.storage.output_files import write_whole
from dppa_mergekit.storage.run_record import write_record

if TYPE_CHECKING:
    from dppa_mergekit.merging.merge_plan import Plan

FILE = "analysis"
"""The name, without suffix, of the files that `write_analysis` writes."""

INSTEAD = method_table.DPPA.name
"""The method whose allocation is shown if the recipe's own is the same for all linears."""

_ANALYSIS = TypeAdapter(Analysis)


@dataclass(frozen=True)
class AnalysisRequest:
    """What to analyse, and where; see `analyze` for the attributes.

    Prompts are those of models as the recipe spells them.
    """

    recipe: Recipe
    prompts: Mapping[str, Sequence[Prompt]]
    placement: Placement
    workspace: Path


def analyze(
    recipe: Recipe,
    prompts: Mapping[str, Sequence[Prompt]] | None = None,
    placement: Placement = AS_STORED,
    workspace: Path | None = None,
) -> Analysis:
    """Analyse the deltas of a recipe's fine-tuned models: offsets, densities, structure, overlaps.

    An earlier analysis of the same recipe and checkpoints comes from the cache.

    Example::

        from pathlib import Path

        from dppa_mergekit import Prompt, Recipe, analyze

        found = analyze(
            Recipe.read(Path("recipe.yml")),
            {"./math": [Prompt("What is 7 times 8?")]},
        )
        for model in found.models:
            print(model.model, model.density, model.divergences)

    Args:
        recipe: A recipe of any method, with a base and fine-tuned models.
        prompts: Fine-tuned model, as the recipe spells it -> prompts on which methods are compared,
            and combinations if all models have some; None or empty for no comparison.
        placement: The device and dtype of the models that answer prompts.
        workspace: A folder on a disk with room for a merged model; None for the system's
            temporary folder. Only used with prompts.

    Raises:
        DppaError: The recipe has no base or no fine-tuned model, there are prompts of a model that
            it does not have, or a model cannot be read.
    """
    # Before the pass over the deltas, since it takes minutes.
    given = {recipe.spelling_of(model): of_model for model, of_model in (prompts or {}).items()}
    request = AnalysisRequest(
        recipe,
        given,
        placement,
        Path(tempfile.gettempdir()) if workspace is None else workspace,
    )
    found = _deltas(request)
    return _add_divergences(request, found) if request.prompts else found


def _deltas(request: AnalysisRequest) -> Analysis:
    """Return the analysis of the deltas, from the cache or by reading them."""
    # Imports mergekit, which takes seconds; registers the methods where autoload is switched off.
    import dppa_mergekit.methods  # noqa: F401

    recipe = allocating(request.recipe)
    with dry_run(recipe, "", loading=request.placement.loading) as planned:
        plan = planned.plan
        assert plan is not None
        kept = _cache_entry(plan, request.recipe)
        known = None if kept is None else kept.read()
        if known is None:
            known = inspect_deltas(plan)
            if kept is not None:
                kept.write(known)
    return known


def _cache_entry(plan: Plan, recipe: Recipe) -> CacheEntry[Analysis] | None:
    """Return where the analysis of a plan is cached; None if the cache is switched off."""
    folder = cache_folder()
    if folder is None:
        return None
    return cache_entry(folder, recipe.origin, "analyses", _ANALYSIS, plan.fingerprint())


def _add_divergences(request: AnalysisRequest, found: Analysis) -> Analysis:
    """Add the divergences of pruned models that have prompts and, if all have, of merges."""
    recipe = request.recipe
    comparison = PromptComparison(recipe, request.prompts, request.placement, request.workspace)
    lessons = comparison.lessons()
    models = []
    for model in tqdm(found.models, desc="divergences", unit="model", delay=2):
        name = recipe.spelling_of(model.model)
        divergences = None
        if name in lessons and 0 < model.density < 1:
            divergences = comparison.pruned(name, lessons[name])
        models.append(replace(model, divergences=divergences))
    merges: list[MergeDivergences] = []
    if len(models) > 1 and set(lessons) == set(recipe.fine_tuned()):
        merges = comparison.merged(lessons)
    return replace(found, models=tuple(models), merges=tuple(merges))


def assign_prompts(recipe: Recipe, files: Sequence[Path]) -> dict[str, list[Prompt]]:
    """Read prompts files, and return the prompts of every fine-tuned model.

    A file named after a model belongs to that model. The models without such a file share all
    other files.

    Raises:
        DppaError: A file cannot be read, or a model would have no prompts.
    """
    if not files:
        return {}
    read = {path: read_prompts(path) for path in files}
    names = {model: short_name(model) for model in recipe.fine_tuned()}
    own = {path for path in read if path.stem in names.values()}
    shared = [prompt for path, prompts in read.items() if path not in own for prompt in prompts]
    found: dict[str, list[Prompt]] = {}
    for model, name in names.items():
        of_model = [p for path, prompts in read.items() if path.stem == name for p in prompts]
        found[model] = of_model or shared
        if not found[model]:
            raise DppaError(
                f"{model} has no prompts; it takes those of a file named {name}, or of the files "
                f"that are named after no model."
            )
    return found


def write_analysis(found: Analysis, recipe: Recipe, output: Path) -> Path:
    """Write `analysis.json`, the tables, a run record and, with the extra `plots`, the plots.

    Args:
        found: The analysis.
        recipe: The recipe that was analysed.
        output: A folder that exists.

    Returns:
        The path of `analysis.json`.
    """
    path = output / f"{FILE}.json"
    write_whole(path, _ANALYSIS.dump_json(found, indent=1) + b"\n")
    text = f"# Deltas of {recipe.origin}\n\n{overview(found)}\n{every_linear(found)}"
    write_whole(path.with_suffix(".md"), text)
    if is_installed():
        draw_analysis(found, output)
    subject: dict[str, object] = {"recipe": recipe.content}
    results = [{"model": name, "verdict": said} for name, said in verdicts(found)]
    write_record(path, "analyze", subject, results)
    return path


def allocating(recipe: Recipe) -> Recipe:
    """Return the recipe with a method that allocates densities, and a weight for every model.

    Raises:
        RecipeError: The recipe has no base, or no fine-tuned model.
    """
    if recipe.content.get("base_model") is None:
        raise RecipeError(f"{recipe.origin} has no base_model; deltas are relative to one.")
    if not recipe.fine_tuned():
        raise RecipeError(f"{recipe.origin} has no fine-tuned models, and so no deltas.")
    content = deepcopy(recipe.content)
    if recipe.method not in method_table.fluctuating():
        content["merge_method"] = INSTEAD
    return Recipe(content, recipe.origin).with_default("weight", 1.0)
