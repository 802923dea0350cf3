"""DPA on one tensor, without a merge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from dppa_mergekit.deltas.delta import Delta
from dppa_mergekit.errors import ParameterError
from dppa_mergekit.parameters import AMPLIFICATIONS, DENSITY, RATES, check_number
from dppa_mergekit.sparsification.partitions import boundary_densities
from dppa_mergekit.sparsification.pruning import materialize, plan_pruning, prune
from dppa_mergekit.sparsification.selections import (
    MAGNITUDE,
    RANDOM,
    MagnitudeRule,
    RandomRule,
    Selection,
)

SELECTIONS: Mapping[str, MagnitudeRule | RandomRule] = {"magnitude": MAGNITUDE, "random": RANDOM}
"""The names that `selection` may have."""


@dataclass(frozen=True)
class PartitionAmplification:
    """Partitions by magnitude (DPPA) or at random (DARE + DPA), each multiplied by its factor.

    With factor 1 everywhere it is plain pruning.

    Attributes:
        factors: Pruning rate in percent (90, 80, ..., 0) -> factor of its partition; 1 if missing.
        selection: "magnitude" keeps the largest deltas; "random" keeps any, by a generator keyed on
            seed and name, and divides the delta by its density first, as DARE does.
        seed: Seed of the random selection.

    Raises:
        ParameterError: A rate is not one of the partitions', or a factor is not allowed.

    Example:
        >>> import torch
        >>> from dppa_mergekit import PartitionAmplification
        >>> delta = torch.tensor([0.4, -0.1, 0.2, -0.3, 0.0, 0.1, 0.0, 0.1, -0.1, 0.1])
        >>> PartitionAmplification({90: 2.0}).sparsify(delta, {90: 1, 80: 2})
        tensor([ 0.8000,  0.0000,  0.0000, -0.3000,  0.0000,  0.0000,  0.0000,  0.0000,
                 0.0000,  0.0000])
    """

    factors: Mapping[int, float] = field(default_factory=dict)
    selection: Literal["magnitude", "random"] = "magnitude"
    seed: int = 0

    def __post_init__(self) -> None:
        for rate, factor in self.factors.items():
            if rate not in RATES:
                raise ParameterError(
                    f"There is no {rate} partition; allowed are {', '.join(map(str, RATES))}."
                )
            check_number(AMPLIFICATIONS[RATES.index(rate)], factor)
        if self.selection not in SELECTIONS:
            raise ParameterError(
                f"selection is {self.selection!r}; allowed is {' or '.join(SELECTIONS)}."
            )

    def densities(self, density: float) -> dict[int, float]:
        """Rate -> density at which `sparsify` needs the kept count of a linear.

        Args:
            density: Target density, from 0 to 1.

        Raises:
            ParameterError: The density is out of range.
        """
        return boundary_densities(check_number(DENSITY, density), self.factors)

    def sparsify(
        self, delta: torch.Tensor, kept_counts: Mapping[int, int], name: Sequence[str] = ()
    ) -> torch.Tensor:
        """The pruned, amplified delta.

        Args:
            delta: Any shape, floating; borrowed. The elements of the whole tensor are one linear.
            kept_counts: Rate -> number of elements kept at that rate, for the rates of `densities`.
            name: Words that tell the random selection of this tensor from others; a merge takes
                model, tensor and expert ("0" if there is one).

        Returns:
            A new tensor of the same shape, in float32 (float64 for a float64 delta).

        Raises:
            ParameterError: The delta is not finite, or the counts are not possible.
        """
        flat = Delta(delta.detach().reshape(-1))
        finite = (
            torch.isfinite(flat.fine_tuned[start:stop]).all() for start, stop in flat.chunks()
        )
        if not all(finite):
            raise ParameterError("The delta holds NaN or infinity; allowed are finite numbers.")
        selection = self._selection()
        (pruned,) = prune([plan_pruning(flat, kept_counts, self.factors, selection, name)])
        return materialize(pruned).reshape(delta.shape)

    def _selection(self) -> Selection:
        return SELECTIONS[self.selection].resolve({"seed": self.seed})
