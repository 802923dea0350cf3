"""Find the tensors of a merge among the weights of the live model, and write them."""

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
    live = weights.get(combined.place.name)
    numel = combined.contributions[0].pruned.pruning.delta.numel
    part = None if live is None else live.view(-1)[combined.place.part]
    if part is None or part.numel() != numel:
        raise missing_tensor(combined.place.name)
    return part


def write_combined(live: torch.Tensor, combined: Combined) -> None:
    """Combine contributions as a merge does, and write the result to live weights.

    Args:
        live: (numel,) live weights; written to.
        combined: At least one contribution, of deltas with a base, of numel elements each.
    """
    base = combined.contributions[0].pruned.pruning.delta.base
    assert base is not None
    merged = torch.empty(base.numel(), dtype=combined.dtypes[0], device=base.device)
    combined.combination.merge(combined.place, base, combined.contributions, merged, torch.inf)
    for dtype in combined.dtypes:
        merged = merged.to(dtype)
    live.copy_(merged)


def missing_tensor(name: str) -> CheckpointError:
    """Return the error for a tensor of a merge that the live model lacks."""
    return CheckpointError(
        f"Tensor {name} is not among the weights of the model that transformers loads, or has "
        f"another shape there; it cannot be changed in memory."
    )
