"""Find the tensors of a merge among the weights of the live model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dppa_mergekit.combination.contribution import Combined
from dppa_mergekit.errors import CheckpointError


def live_part(weights: Mapping[str, torch.Tensor], combined: Combined) -> torch.Tensor:
    """Return the live weights of a linear or a dense tensor of a merge, as a flat view.

    Args:
        weights: Name -> live tensor, of any shape.
        combined: What became one linear, or one dense tensor, of the merge.

    Returns:
        (numel,) a view: writing to it changes the live model.

    Raises:
        CheckpointError: The live model has no tensor of this name, or it has another shape.
    """
    live = weights.get(combined.name)
    numel = next(iter(combined.contributions.values())).pruned.pruning.delta.numel
    part = None if live is None else live.view(-1)[combined.part]
    if part is None or part.numel() != numel:
        raise missing_tensor(combined.name)
    return part


def missing_tensor(name: str) -> CheckpointError:
    """Return the error for a tensor of a merge that the live model lacks."""
    return CheckpointError(
        f"Tensor {name} is not among the weights of the model that transformers loads, or has "
        f"another shape there; it cannot be changed in memory."
    )
