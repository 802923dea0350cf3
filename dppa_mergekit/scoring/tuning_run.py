"""What a search and AdaMerging have in common: files beside the output, and what results depend on.

A journal holds these inputs, and only a run with the same ones goes on from it.
"""

from __future__ import annotations

from pathlib import Path

from dppa_mergekit.live.placement import Placement
from dppa_mergekit.live.source_model import activation_digests, fingerprints
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.engines import EngineName
from dppa_mergekit.scoring.lm_eval_harness import lm_eval_version
from dppa_mergekit.scoring.tasks import TasksFile, folder_hash
from dppa_mergekit.version import __version__


def journal_of(output: Path) -> Path:
    """Return the file of the journal of a run."""
    return output.with_name(f"{output.name}.journal.jsonl")


def lessons_of(output: Path, domain: str) -> Path:
    """Return the file that keeps the answers of a domain's teacher."""
    return output.with_name(f"{output.name}.teacher-{domain}.safetensors")


def describe_inputs(
    recipe: Recipe,
    tasks: TasksFile | None,
    placement: Placement,
    by_lm_eval: bool,
    engine: EngineName = "transformers",
    guarded: bool = True,
) -> dict[str, object]:
    """Return the inputs of a run as plain data, by name.

    Args:
        recipe: The recipe that is tuned.
        tasks: The tasks file; None for none.
        placement: The dtype of live models, and how models are loaded.
        by_lm_eval: Whether lm-eval scores models.
        engine: What runs the models that it scores.
        guarded: Whether the dev tasks of the guard are scored.
    """
    seen = None
    if tasks is not None:
        seen = tasks.describe_dev(guarded)
        del seen["batch_size" if engine == "vllm" else "vllm_args"]
    return {
        "version": __version__,
        "lm_eval": lm_eval_version() if by_lm_eval else None,
        "recipe": recipe.content,
        "tasks": seen,
        "task files": None if tasks is None else folder_hash(tasks.include_path),
        "checkpoints": fingerprints(recipe, placement),
        "activations": activation_digests(recipe),
        "dtype": str(placement.dtype),
    }
