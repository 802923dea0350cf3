"""One delta that acts on the inputs of every model as that model's own delta does.

After RegMean (arXiv 2212.09849): with D_k the delta of model k, (outputs, inputs), w_k its weight,
and G_k the second moments of its inputs, the merged delta

    D = (sum_k w_k D_k G_k) (sum_k w_k G_k)^-1

minimises sum_k w_k E_k ||(D - D_k) x||^2. The moments are low rank plus diagonal,
G_k = V_k diag(e_k) V_k^T + diag(q_k). With p = sum_k w_k q_k, U_k = V_k diag(w_k e_k)^(1/2), and
the mean M = sum_k D_k diag(w_k q_k / p), Woodbury's identity gives

    D = M + [(D_1 - M) U_1, (D_2 - M) U_2, ...] C,      C = (I + U^T diag(p)^-1 U)^-1 U^T diag(p)^-1

with U = [U_1, U_2, ...]. So the system has as many unknowns as the ranks together, and not as many
as there are inputs. M and C do not depend on the deltas: linears that share inputs share them.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary, ref

import torch

from dppa_mergekit.deltas.products import (
    compute_in_one_thread,
    map_in_single_threads,
    multiply_lower,
    solve,
)
from dppa_mergekit.moments.second_moment import SecondMoment


class SingularMomentsError(Exception):
    """The moments of a linear's inputs leave its regression without a unique solution."""


@dataclass(frozen=True)
class InputRegression:
    """How the deltas of one linear become one.

    Attributes:
        shares: (models, inputs) w_k q_k / p, the share of each model's column in the mean.
        vectors: Of each model, U_k, (inputs, rank).
        correction: C, (sum of ranks, inputs).
    """

    shares: torch.Tensor
    vectors: Sequence[torch.Tensor]
    correction: torch.Tensor

    def combine(self, deltas: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return rows of the merged delta, and overwrite the rows of the models' deltas.

        Args:
            deltas: Of each model, (rows, inputs).
        """
        mean = deltas[0] * self.shares[0]
        for delta, shares in zip(deltas[1:], self.shares[1:], strict=True):
            mean.addcmul_(delta, shares)
        projected = [
            delta.sub_(mean) @ vectors for delta, vectors in zip(deltas, self.vectors, strict=True)
        ]
        return mean.addmm_(torch.cat(projected, 1), self.correction)

    def pull_back(self, gradient: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield rows of the derivatives of a loss in each model's delta, (rows, inputs).

        Args:
            gradient: (rows, inputs) the derivatives in the merged delta.
        """
        ranks = [vectors.shape[1] for vectors in self.vectors]
        projected = torch.split(gradient @ self.correction.t(), ranks, 1)
        back = [part @ vectors.t() for part, vectors in zip(projected, self.vectors, strict=True)]
        rest = gradient - sum(back[1:], back[0])
        for part, shares in zip(back, self.shares, strict=True):
            yield part.addcmul_(rest, shares)


_SOLVED: WeakKeyDictionary[SecondMoment, tuple[Hashable, InputRegression]] = WeakKeyDictionary()
"""Moments of the first model -> what was solved with them last, for as long as they live: linears
that share their inputs share the solution, and so do several merges in memory."""


def regress(
    moments: Sequence[SecondMoment],
    weights: Sequence[float],
    shrinkage: float,
    ridge: float,
    device: torch.device,
    dtype: torch.dtype,
) -> InputRegression:
    """Solve the normal equations of linears with these inputs, unless that has been done.

    Args:
        moments: Of each model; at least one.
        weights: Of each model, above 0.
        shrinkage: Factor of the moments' off-diagonal entries, from 0 to 1.
        ridge: Added to the diagonal of moments whose mean diagonal is 1; at least 0.
        device: The device of the deltas.
        dtype: The dtype of the result.

    Raises:
        SingularMomentsError: The equations have no unique solution.
    """
    first, *others = moments
    key = (*map(ref, others), *weights, shrinkage, ridge, device, dtype)
    known, solution = _SOLVED.get(first, (None, None))
    if solution is None or known != key:
        solution = _solve(moments, weights, shrinkage, ridge, device, dtype)
        _SOLVED[first] = key, solution
    return solution


def _solve(
    moments: Sequence[SecondMoment],
    weights: Sequence[float],
    shrinkage: float,
    ridge: float,
    device: torch.device,
    dtype: torch.dtype,
) -> InputRegression:
    """Solve the normal equations in float64; see `regress`."""
    ranks = [len(moment.values) for moment in moments]
    transposed = torch.empty(sum(ranks), moments[0].inputs, dtype=torch.float64, device=device)
    parts = torch.split(transposed, ranks)

    def prepare(model: int) -> torch.Tensor:
        """Write U^T of a model, and return w q."""
        moment, weight = moments[model].conditioned(shrinkage, ridge, device), weights[model]
        torch.mul(moment.vectors.t(), (weight * moment.values).sqrt()[:, None], out=parts[model])
        return weight * moment.rest

    rests = torch.stack(map_in_single_threads(prepare, range(len(moments)), device))
    total = rests.sum(0)
    plain = torch.tensor(weights, dtype=torch.float64, device=device)
    shares = torch.where(total > 0, rests / total, (plain / plain.sum())[:, None])
    return InputRegression(
        shares.to(dtype),
        [part.t().to(dtype) for part in parts],
        _correction(transposed, total).to(dtype),
    )


def _correction(transposed: torch.Tensor, diagonal: torch.Tensor) -> torch.Tensor:
    """Return C = U^T (U U^T + diag(p))^-1, by whichever system is smaller.

    Args:
        transposed: U^T, (sum of ranks, inputs).
        diagonal: p, (inputs,).
    """
    ranks, inputs = transposed.shape
    if ranks < inputs and bool((diagonal > 0).all()):
        scaled = transposed / diagonal
        system = multiply_lower(transposed, scaled.t())
        system.diagonal().add_(1)
        return solve(_factor(system), scaled)
    system = multiply_lower(transposed.t(), transposed)
    system.diagonal().add_(diagonal)
    return solve(_factor(system), transposed.t()).t()


def _factor(system: torch.Tensor) -> torch.Tensor:
    """Return the Cholesky factor of a symmetric system, of which the lower triangle is given."""
    factor: torch.Tensor
    factor, failed = compute_in_one_thread(lambda: torch.linalg.cholesky_ex(system), system.device)
    # Rounding may let a singular system pass: its smallest pivot is then no larger than the error.
    pivots = factor.diagonal().square()
    smallest = len(system) * torch.finfo(system.dtype).eps * pivots.max()
    if bool(failed) or not bool(pivots.min() > smallest):
        raise SingularMomentsError
    return factor
