"""Find the tensors of a merge among the weights of the live model, and write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dppa_mergekit.combination.contribution import Combination, Combined, Contribution
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


def write_combined(
    live: torch.Tensor,
    combination: Combination,
    contributions: Sequence[Contribution],
    dtypes: Sequence[torch.dtype],
) -> None:
    """Combine contributions as a merge does, and write the result to live weights.

    Args:
        live: (numel,) live weights; written to.
        combination: How the contributions are combined.
        contributions: At least one, of deltas with a base, of numel elements each.
        dtypes: The dtypes that the merge casts to, one after the other.
    """
    base = contributions[0].pruned.pruning.delta.base
    assert base is not None
    merged = torch.empty(base.numel(), dtype=dtypes[0], device=base.device)
    combination.merge(base, contributions, merged, torch.inf)
    for dtype in dtypes:
        merged = merged.to(dtype)
    live.copy_(merged)


def missing_tensor(name: str) -> CheckpointError:
    """Return the error for a tensor of a merge that the live model lacks."""
    return CheckpointError(
        f"Tensor {name} is not among the weights of the model that transformers loads, or has "
        f"another shape there; it cannot be changed in memory."
    )
