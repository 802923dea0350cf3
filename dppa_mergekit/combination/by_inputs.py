"""The combination of deltas by the inputs that they answer to; see `input_regression`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from dppa_mergekit.combination.contribution import Contribution, Place
from dppa_mergekit.combination.input_regression import (
    InputRegression,
    SingularMomentsError,
    regress,
)
from dppa_mergekit.combination.output_factor import output_factor
from dppa_mergekit.combination.weighted_sum import WeightedSum
from dppa_mergekit.deltas.linear_shape import LinearShape
from dppa_mergekit.deltas.threads import share
from dppa_mergekit.errors import CheckpointError
from dppa_mergekit.moments.delta_moment import delta_moment
from dppa_mergekit.moments.second_moment import SecondMoment
from dppa_mergekit.sparsification.linear_rows import open_rows
from dppa_mergekit.sparsification.pruning import Pruned


@dataclass(frozen=True)
class ByInputs:
    """The regression of linears on their inputs, and the weighted mean of dense tensors.

    Sums are made in float32 (float64 for float64 models) and cast once to the output's dtype. The
    models are taken in the order of their names, so the order of a recipe does not matter.

    Attributes:
        shrinkage: Factor of the moments' off-diagonal entries, from 0 to 1.
        ridge: Added to the diagonal of moments whose mean diagonal is 1; at least 0.
        normalize: Whether the sum of dense tensors is divided by the sum of the weights.
        lambda_: Factor of the combined delta.
        amplify: Whether deltas without factors get the one of `output_factor`.
    """

    by_inputs: ClassVar[bool] = True

    shrinkage: float
    ridge: float
    normalize: bool = True
    lambda_: float = 1.0
    amplify: bool = False

    def merge(
        self,
        place: Place,
        base: torch.Tensor,
        contributions: Sequence[Contribution],
        merged: torch.Tensor,
        limit: float,
    ) -> bool:
        """Write base plus the combined contributions; see `Combination.merge`.

        Raises:
            CheckpointError: The regression has no unique solution.
        """
        ordered = sorted(contributions, key=lambda contribution: contribution.model)
        counting = [contribution for contribution in ordered if contribution.weight != 0]
        if place.shape is None:
            dense = WeightedSum(self.normalize, self.lambda_)
            return dense.merge(place, base, ordered, merged, limit)
        if len(counting) < 2:
            # The regression of one model's delta is that delta.
            alone = [replace(contribution, weight=1.0) for contribution in counting]
            return WeightedSum(False, self.lambda_).merge(
                place, base, alone or ordered, merged, limit
            )
        return self._merge_linear(place, place.shape, base, counting, merged, limit)

    def _merge_linear(
        self,
        place: Place,
        shape: LinearShape,
        base: torch.Tensor,
        contributions: Sequence[Contribution],
        merged: torch.Tensor,
        limit: float,
    ) -> bool:
        delta = contributions[0].pruned.pruning.delta
        moments = _moments(contributions, shape)
        try:
            regression = regress(
                moments,
                [contribution.weight for contribution in contributions],
                self.shrinkage,
                self.ridge,
                delta.device,
                delta.dtype,
            )
        except SingularMomentsError:
            raise CheckpointError(
                f"Tensor {place.name}: the second moments of its inputs are singular; a "
                f"moment_ridge above {self.ridge:g} adds to their diagonal what they lack."
            ) from None
        origin, result = shape.matrix(base), shape.matrix(merged)
        open_reader = open_rows(
            [contribution.pruned for contribution in contributions],
            shape,
            self._factors(contributions, moments, shape),
        )

        def work(pieces: Iterator[tuple[int, int]]) -> bool:
            read, overflow = open_reader(), False
            for start, stop in pieces:
                total = _combine(read(start, stop), regression)
                if self.lambda_ != 1:
                    total.mul_(self.lambda_)
                total.add_(origin[start:stop])
                low, high = torch.aminmax(total)
                overflow |= not (-limit <= float(low) and float(high) <= limit)
                result[start:stop] = total
            return overflow

        return any(share(work, shape.rows(delta.device), delta.device, summing=True))

    def _factors(
        self,
        contributions: Sequence[Contribution],
        moments: Sequence[SecondMoment],
        shape: LinearShape,
    ) -> list[float]:
        """Return the factor of every model's delta, beside those of its partitions."""
        return [
            output_factor(contribution.pruned, moment, shape)
            if self.amplify and is_plainly_pruned(contribution.pruned)
            else 1.0
            for contribution, moment in zip(contributions, moments, strict=True)
        ]


def is_plainly_pruned(pruned: Pruned) -> bool:
    """Whether a delta lost elements, and those kept have neither factors nor a divisor."""
    pruning = pruned.pruning
    lost = pruning.keys is not None and pruning.divisor == 1
    return lost and all(factor == 1 for factor in pruning.factors)


def _combine(deltas: Sequence[torch.Tensor], regression: InputRegression) -> torch.Tensor:
    """Return rows of the merged delta, and overwrite the rows of the models' deltas."""
    mean = deltas[0] * regression.shares[0]
    for delta, shares in zip(deltas[1:], regression.shares[1:], strict=True):
        mean.addcmul_(delta, shares)
    projected = [
        delta.sub_(mean) @ vectors
        for delta, vectors in zip(deltas, regression.vectors, strict=True)
    ]
    return mean.addmm_(torch.cat(projected, 1), regression.correction)


def _moments(contributions: Sequence[Contribution], shape: LinearShape) -> list[SecondMoment]:
    """Return the moments of every model's inputs: all observed, or all estimated from deltas."""
    observed = [contribution.moment for contribution in contributions]
    known = [moment for moment in observed if moment is not None]
    if len(known) == len(observed):
        return known
    return [
        delta_moment(contribution.pruned.pruning.delta, shape) for contribution in contributions
    ]
