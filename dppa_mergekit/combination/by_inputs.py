"""The combination of deltas by the inputs that they answer to; see `input_regression`."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
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
from dppa_mergekit.deltas.threads import in_order, share
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
        counting = _with_weight(ordered)
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
        device = contributions[0].pruned.pruning.delta.device
        regression = self._regress(place.name, shape, contributions)
        origin, result = shape.matrix(base), shape.matrix(merged)
        factors = self.automatic_factors(place, contributions)
        open_reader = open_rows(
            [contribution.pruned for contribution in contributions], shape, factors
        )

        def work(pieces: Iterator[tuple[int, int]]) -> bool:
            read, overflow = open_reader(), False
            for start, stop in pieces:
                total = regression.combine(read(start, stop))
                if self.lambda_ != 1:
                    total.mul_(self.lambda_)
                total.add_(origin[start:stop])
                low, high = torch.aminmax(total)
                overflow |= not (-limit <= float(low) and float(high) <= limit)
                result[start:stop] = total
            return overflow

        return any(share(work, shape.rows(device), device, summing=True))

    def without_automatic(self) -> "ByInputs":
        """Return the combination that finds no factors."""
        return replace(self, amplify=False)

    def automatic_factors(self, place: Place, contributions: Sequence[Contribution]) -> list[float]:
        """Return the factor that `merge` gives every delta of a linear; 1 where it gives none.

        It gives none to deltas that have factors, to those of models without weight, and to the
        delta of the only model that counts.

        Args:
            place: The place of the linear.
            contributions: At least one, of numel elements each.
        """
        assert place.shape is not None
        counting = _with_weight(contributions)
        if not self.amplify or len(counting) < 2:
            return [1.0] * len(contributions)
        found = {
            contribution.model: output_factor(contribution.pruned, moment, place.shape)
            for contribution, moment in zip(counting, _moments(counting, place.shape), strict=True)
            if _is_plainly_pruned(contribution.pruned)
        }
        return [found.get(contribution.model, 1.0) for contribution in contributions]

    def factor_gradients(
        self, place: Place, contributions: Sequence[Contribution], of_merged: torch.Tensor
    ) -> list[float]:
        """The derivatives of a loss in a factor of each model's delta, whatever its value.

        The merged delta is linear in these factors; those of a dense tensor are constant.

        Args:
            place: The place of the result.
            contributions: In the order of the recipe, of numel elements each.
            of_merged: (numel,) derivative of the loss in the merged elements; on any device.
        """
        alone = [[one.pruned] for one in contributions]
        return [found[0] for found in self._gradients(place, contributions, alone, of_merged)]

    def partition_gradients(
        self, place: Place, contributions: Sequence[Contribution], of_merged: torch.Tensor
    ) -> list[list[float]]:
        """The derivatives of a loss in the factors of each model's partitions.

        The arguments are those of `factor_gradients`.
        """
        partitions = [one.pruned.partitions() for one in contributions]
        return self._gradients(place, contributions, partitions, of_merged)

    def _gradients(
        self,
        place: Place,
        contributions: Sequence[Contribution],
        parts: Sequence[Sequence[Pruned]],
        of_merged: torch.Tensor,
    ) -> list[list[float]]:
        """The derivatives of a loss in a factor of each part of each model's delta.

        Args:
            place: The place of the result.
            contributions: In the order of the recipe, of numel elements each.
            parts: Of each contribution.
            of_merged: (numel,) derivative of the loss in the merged elements; on any device.
        """
        parts_of = {one.model: of_one for one, of_one in zip(contributions, parts, strict=True)}
        zeros = {model: [0.0] * len(of_one) for model, of_one in parts_of.items()}
        models = _with_weight(sorted(contributions, key=lambda contribution: contribution.model))
        if place.shape is None or not models:
            return list(zeros.values())
        delta, shape = models[0].pruned.pruning.delta, place.shape
        regression = self._regress(place.name, shape, models) if len(models) > 1 else None
        gradient = shape.matrix(of_merged.to(delta.device))
        counting = [parts_of[one.model] for one in models]
        pruned = [part for of_one in counting for part in of_one]
        open_reader = open_rows(pruned, shape, [1.0] * len(pruned))

        def work(pieces: Iterator[tuple[int, int]]) -> list[tuple[int, list[float]]]:
            read, sums = open_reader(), []
            for start, stop in pieces:
                of_rows = gradient[start:stop].to(delta.dtype)
                of_models = [of_rows] if regression is None else regression.pull_back(of_rows)
                values = iter(read(start, stop))
                found = [
                    float(next(values).mul_(of_model).sum(dtype=torch.float64))
                    for of_model, of_one in zip(of_models, counting, strict=True)
                    for _ in of_one
                ]
                sums.append((start, found))
            return sums

        found = in_order(share(work, shape.rows(delta.device), delta.device, summing=True))
        totals = iter(self.lambda_ * math.fsum(values) for values in zip(*found, strict=True))
        by_model = {
            one.model: list(islice(totals, len(of_one)))
            for one, of_one in zip(models, counting, strict=True)
        }
        return list({**zeros, **by_model}.values())

    def _regress(
        self, name: str, shape: LinearShape, contributions: Sequence[Contribution]
    ) -> InputRegression:
        """Solve the regression of a linear; see `regress`."""
        delta = contributions[0].pruned.pruning.delta
        try:
            return regress(
                _moments(contributions, shape),
                [contribution.weight for contribution in contributions],
                self.shrinkage,
                self.ridge,
                delta.device,
                delta.dtype,
            )
        except SingularMomentsError:
            raise CheckpointError(
                f"Tensor {name}: the second moments of its inputs are singular; allowed is a "
                f"moment_ridge above {self.ridge:g}, which is added to their diagonal."
            ) from None


def _with_weight(contributions: Sequence[Contribution]) -> list[Contribution]:
    """Return the contributions that have a weight."""
    return [contribution for contribution in contributions if contribution.weight != 0]


def _is_plainly_pruned(pruned: Pruned) -> bool:
    """Whether a delta lost elements, and those kept have neither factors nor a divisor."""
    pruning = pruned.pruning
    lost = pruning.keys is not None and pruning.divisor == 1
    return lost and all(factor == 1 for factor in pruning.factors)


def _moments(contributions: Sequence[Contribution], shape: LinearShape) -> list[SecondMoment]:
    """Return the moments of every model's inputs: all observed, or all estimated from deltas."""
    observed = [contribution.moment for contribution in contributions]
    known = [moment for moment in observed if moment is not None]
    if len(known) == len(observed):
        return known
    return [
        delta_moment(contribution.pruned.pruning.delta, shape) for contribution in contributions
    ]
