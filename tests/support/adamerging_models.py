"""Tiny merges whose weights are learned."""

from pathlib import Path

from checkpoints import recipe

from dppa_mergekit.adamerging.losses import Completion, DomainLoss, Entropy, StateTeaching, Teaching
from dppa_mergekit.adamerging.objectives import load_merge
from dppa_mergekit.adamerging.teacher import teach
from dppa_mergekit.live.placement import AS_STORED
from dppa_mergekit.live.source_model import SourceModel
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.recipes.recipe import Recipe

PROMPTS = [[5, 6, 7], [9], [13, 12, 11, 10, 9], [6, 6], [20, 31, 5]]
OF_MODELS = {
    "math": {"weight": 0.6, "density": 0.3, "amplify_90": 1.4, "amplify_80": 0.7},
    "law": {"weight": 0.2, "density": 0.2, "amplify_90": 1.2},
}


def losses(folder: Path) -> dict[str, DomainLoss]:
    """One of each objective."""
    model, tokenizer = SourceModel(str(folder / "math")).load()
    model.requires_grad_(False)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # torch groups no products in float64
    teacher = teach(model, tokenizer, PROMPTS, 3)
    examples = [[*prompt, 40, 41, 42][: 3 + len(prompt)] for prompt in PROMPTS]
    return {
        "entropy": Entropy(PROMPTS),
        "loss": Completion(examples, [len(prompt) for prompt in PROMPTS]),
        "distill": Teaching(teacher),
        "hidden": StateTeaching(teacher, model),
    }


def merge_of(
    folder: Path, workspace: Path, method: str = "dppa", **changes: object
) -> WeightedMerge:
    return load_merge(Recipe(recipe(folder, method, OF_MODELS, **changes)), workspace, AS_STORED)
