"""The factor that makes the outputs of a pruned delta as large as those of the whole delta.

With D the whole delta of a linear, P the pruned one, and G the second moments of the inputs, the
factor is (tr(D G D^T) / tr(P G P^T))^(1/2): the outputs of both then have the same mean square.
"""

import math
from collections.abc import Iterator

import torch

from dppa_mergekit.deltas.linear_shape import LinearShape
from dppa_mergekit.deltas.products import compute_in_one_thread
from dppa_mergekit.deltas.threads import in_order, share
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.sparsification.linear_rows import keep_whole, open_rows
from dppa_mergekit.sparsification.pruning import Pruned

DIRECTIONS = 16
"""Leading directions of the moments that count as such; the others count by their diagonal. With
16, the factors of SmolLM2's linears differ by less than half a percent from those with all 256."""

OUTPUTS = 512
"""How many outputs are looked at of a linear that has at least twice as many. On SmolLM2, the
factors of linears with 1536 outputs then differ by 2.4 % at most from those of all outputs. Where a
few outputs are far larger than the others, more counts: of down_proj in some of its blocks, factors
from 256 of the 576 outputs were off by up to 29 %."""

ADJACENT = 16
"""Outputs that are read together, where some are looked at."""

TOGETHER = 64
"""Outputs that are read together, where all are."""

GOLDEN = (math.sqrt(5) - 1) / 2
"""The ratio whose multiples are spread most evenly over the fractions."""


def output_factor(pruned: Pruned, moment: SecondMoment, shape: LinearShape) -> float:
    """The factor; 1 where pruning leaves no outputs.

    Args:
        pruned: The delta of one linear, pruned.
        moment: The second moments of the linear's inputs.
        shape: The shape of the linear.
    """
    delta = pruned.pruning.delta
    roots, root = compute_in_one_thread(lambda: _roots(moment), moment.rest.device)
    roots, root = (part.to(delta.device, delta.dtype) for part in (roots, root))
    open_reader = open_rows([pruned, keep_whole(delta)], shape, (1.0, 1.0))

    def work(pieces: Iterator[tuple[int, int]]) -> list[tuple[int, tuple[float, float]]]:
        read, sums = open_reader(), []
        for start, stop in pieces:
            part, whole = (
                _sum_squares(rows @ roots) + _sum_squares(rows.mul_(root))
                for rows in read(start, stop)
            )
            sums.append((start, (whole, part)))
        return sums

    found = in_order(share(work, _spread(shape.outputs), delta.device, summing=True))
    outputs, kept = (sum(values) for values in zip(*found, strict=True))
    return math.sqrt(outputs / kept) if kept > 0 and outputs < math.inf else 1.0


def _spread(outputs: int) -> list[tuple[int, int]]:
    """Return (start, stop) of the outputs to look at."""
    if outputs < 2 * OUTPUTS:
        return [(start, min(start + TOGETHER, outputs)) for start in range(0, outputs, TOGETHER)]
    pieces = OUTPUTS // ADJACENT
    step = outputs / pieces
    # No two at one place within the heads of an attention, whose places differ in their frequency.
    starts = [int(step * piece + GOLDEN * piece % 1 * (step - ADJACENT)) for piece in range(pieces)]
    return [(start, start + ADJACENT) for start in starts]


def _sum_squares(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values)) ** 2


def _roots(moment: SecondMoment) -> tuple[torch.Tensor, torch.Tensor]:
    """R, (inputs, directions), and r, (inputs,), with G = R R^T + diag(r)^2 but for directions.

    The directions beyond the leading ones count by their diagonal.
    """
    order = moment.values.argsort(descending=True)
    vectors, values = (part.double()[..., order] for part in (moment.vectors, moment.values))
    others = vectors[:, DIRECTIONS:].square().mv(values[DIRECTIONS:])
    root = (moment.rest.double() + others).sqrt()
    return vectors[:, :DIRECTIONS] * values[:DIRECTIONS].sqrt(), root
