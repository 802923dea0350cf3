"""The pruned, amplified deltas of one model in memory: DP and DPA in one call."""

from collections.abc import Mapping

import torch

from dppa_mergekit.allocation.density import DynamicPruning
from dppa_mergekit.allocation.measurement import delta_statistics
from dppa_mergekit.deltas.delta import Delta, linear_deltas
from dppa_mergekit.sparsification.amplification import PartitionAmplification
from dppa_mergekit.tensor_names import Linear, linears_in


def sparsify(
    base: Mapping[str, torch.Tensor],
    fine_tuned: Mapping[str, torch.Tensor],
    density: float = 0.2,
    factors: Mapping[int, float] | None = None,
) -> dict[str, torch.Tensor]:
    """The deltas of a model, pruned by DP and amplified by DPA, as the method `dppa` does it.

    Args:
        base: Name -> tensor of the base model.
        fine_tuned: Name -> tensor of the fine-tuned model, with the same names and shapes.
        density: Share of the linears' elements to keep, from 0 to 1.
        factors: Pruning rate in percent (90, 80, ..., 0) -> factor of its partition; 1 if missing.

    Returns:
        Name -> delta in float32 (float64 for float64 models); dense tensors keep their whole delta.
        Tensors of integers are left out.

    Raises:
        ParameterError: The density or a factor is out of range.
        CheckpointError: A tensor is missing, holds NaN or infinity, or has another shape.

    Example:
        >>> import torch
        >>> from dppa_mergekit import sparsify
        >>> base = {f"layers.{i}.up.weight": torch.zeros(30, 20) for i in range(2)}
        >>> fine_tuned = {name: torch.randn(30, 20) for name in base}
        >>> deltas = sparsify(base, fine_tuned, density=0.2, factors={90: 1.5})
        >>> sum(int(delta.count_nonzero()) for delta in deltas.values())
        240
    """
    amplification = PartitionAmplification(factors or {})
    pruning = DynamicPruning()
    densities = amplification.densities(density)
    statistics = delta_statistics(base, fine_tuned)
    counts = {rate: pruning.allocate(statistics, reach) for rate, reach in densities.items()}
    deltas = {}
    for name, tensor in base.items():
        if not tensor.is_floating_point():
            continue
        held = linears_in(name, tensor.shape)
        parts = [_values(delta) for delta in linear_deltas(tensor, fine_tuned[name], held)]
        if held:
            parts = [
                amplification.sparsify(
                    part, {rate: counts[rate][Linear(name, expert)] for rate in counts}
                )
                for expert, part in enumerate(parts)
            ]
        deltas[name] = torch.cat(parts).reshape(tensor.shape)
    return deltas


def _values(delta: Delta) -> torch.Tensor:
    """(numel,) the whole delta."""
    return delta.sample(1)
