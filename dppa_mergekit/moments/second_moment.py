"""The second moments G = E[x x^T] of the inputs x of a linear, as low rank plus diagonal."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """G = V diag(e) V^T + diag(q).

    Attributes:
        vectors: V, (inputs, rank) floating.
        values: e, (rank,) at least 0.
        rest: q, (inputs,) at least 0: what the low rank leaves of G's diagonal.
    """

    vectors: torch.Tensor
    values: torch.Tensor
    rest: torch.Tensor

    @property
    def inputs(self) -> int:
        """The number of inputs."""
        return len(self.rest)

    def conditioned(self, shrinkage: float, ridge: float, device: torch.device) -> "SecondMoment":
        """Return the moments as the regression takes them, in float64.

        They are scaled to mean diagonal 1, so that no model counts more for the size of its inputs.
        Then off-diagonal entries are multiplied by `shrinkage`, and `ridge` is added to the
        diagonal. Moments of zero stay zero but for the ridge.

        Args:
            shrinkage: From 0 to 1.
            ridge: At least 0.
            device: The device of the result.
        """
        vectors, values, rest = (
            part.to(device, torch.float64) for part in (self.vectors, self.values, self.rest)
        )
        diagonal = vectors.square().mv(values) + rest
        mean = float(diagonal.mean())
        scale = 1 / mean if mean > 0 else 1.0
        return SecondMoment(
            vectors,
            values * (scale * shrinkage),
            (rest * shrinkage + diagonal * (1 - shrinkage)).mul_(scale).add_(ridge),
        )
