"""Partitions (paper 3.3.2, DPA): parts of the kept elements, by tens of the pruning rate.

The 90 partition is what survives at pruning rate 90 %, the 80 partition is what survives at 80 %
but not at 90 %, and so on down to 0. Elements beyond the target density are zero. A target that is
no multiple of ten cuts its last partition short.
"""

from collections.abc import Mapping

from dppa_mergekit.parameters import RATES


def partition_densities(density: float) -> dict[int, float]:
    """Rate -> density down to which its partition reaches, for all partitions within a density.

    At density 0.25: {90: 0.1, 80: 0.2, 70: 0.25}.
    """
    reach: dict[int, float] = {}
    for rate in RATES:
        full = (100 - rate) / 100
        reach[rate] = min(full, density)
        if full >= density:
            break
    return reach


def boundary_densities(
    density: float, factors: Mapping[int, float], every_partition: bool = False
) -> dict[int, float]:
    """The partition densities at which a kept count is needed.

    Neighbouring partitions with one factor are one partition: their inner boundary changes nothing,
    so its count is left out.

    Args:
        density: Target density of the linear's model.
        factors: Rate -> factor, 1 where missing.
        every_partition: Keep all boundaries, so that partitions stay separate even where their
            factors are equal.

    Returns:
        Rate -> density; the last rate is that of the target density.
    """
    reach = partition_densities(density)
    rates = list(reach)
    following = [*rates[1:], None]
    return {
        rate: reach[rate]
        for rate, lower in zip(rates, following, strict=True)
        if every_partition or lower is None or factors.get(rate, 1.0) != factors.get(lower, 1.0)
    }
