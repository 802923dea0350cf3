"""Second moments of a linear's inputs, estimated from its delta alone.

Fine-tuning on inputs x writes into a weight what lies in their span, so D^T D of the unpruned delta
D, (outputs, inputs), takes the place of E[x x^T]. Its low rank is found in one pass over the delta,
by a Nystroem approximation from the products with a fixed random matrix (Tropp et al., 2017,
arXiv 1706.05736, algorithm 3).
"""

from collections.abc import Iterator
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch

from dppa_mergekit.deltas.delta import RUN, Buffer, Delta, delta_chunks
from dppa_mergekit.deltas.linear_shape import LinearShape
from dppa_mergekit.deltas.products import compute_in_one_thread
from dppa_mergekit.deltas.threads import in_order, share
from dppa_mergekit.moments.second_moment import SecondMoment

RANK = 64
"""Rank of the approximation."""

OVERSAMPLING = 16
"""Columns of the random matrix beyond the rank."""

SAMPLE = 16
"""The size of a delta is found from one of so many runs."""

GROUPS = 8
"""Groups of rows whose sums are made one after the other within a group, and then in order."""


_KNOWN: WeakKeyDictionary[Delta, SecondMoment] = WeakKeyDictionary()
"""Moments that were estimated, for as long as their deltas live."""


def delta_moment(delta: Delta, shape: LinearShape) -> SecondMoment:
    """Return D^T D of a delta as low rank plus diagonal, the same object if asked again.

    Args:
        delta: Of one linear, before it is pruned.
        shape: The shape of the linear.
    """
    known = _KNOWN.get(delta)
    if known is None:
        known = _KNOWN[delta] = _estimate(delta, shape)
    return known


def _estimate(delta: Delta, shape: LinearShape) -> SecondMoment:
    columns = RANK + OVERSAMPLING
    if shape.inputs <= 2 * columns:
        gram, _ = _products(delta, shape, torch.eye(shape.inputs, dtype=torch.float64))
        values, vectors = compute_in_one_thread(lambda: _eigen(gram), gram.device)
        return SecondMoment(vectors, values, torch.zeros_like(values))
    random = _random_basis(shape.inputs, columns)
    product, squares = _products(delta, shape, random)
    precision = torch.finfo(delta.dtype).eps
    return compute_in_one_thread(
        lambda: _approximate(random, product, squares, precision), product.device
    )


def _approximate(
    random: torch.Tensor, product: torch.Tensor, squares: torch.Tensor, precision: float
) -> SecondMoment:
    """Return G from its product with a random matrix.

    Args:
        random: (inputs, columns) orthonormal columns.
        product: G random, (inputs, columns).
        squares: The diagonal of G, (inputs,).
        precision: The relative error of the product.
    """
    size = float(product.norm())
    if size == 0:
        zero = torch.zeros_like(squares)
        return SecondMoment(zero[:, None], zero[:1], zero)
    # Rounding may make the system below indefinite, which a small shift prevents.
    shift = len(random) ** 0.5 * precision * size
    shifted = product + shift * random
    system = random.t() @ shifted
    factor = torch.linalg.cholesky((system + system.t()) / 2)
    root = torch.linalg.solve_triangular(factor, shifted.t(), upper=False).t()
    values, basis = _eigen(root.t() @ root)
    values, basis = values[-RANK:], basis[:, -RANK:]
    vectors = (root @ basis) / values.clamp(min=shift).sqrt()
    values = (values - shift).clamp(min=0)
    rest = (squares - vectors.square().mv(values)).clamp(min=0)
    return SecondMoment(vectors, values, rest)


@lru_cache(maxsize=4)
def _random_basis(inputs: int, columns: int) -> torch.Tensor:
    """Return (inputs, columns) orthonormal columns, the same in every process; float64."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(inputs, columns, dtype=torch.float64, generator=generator)
    basis: torch.Tensor = compute_in_one_thread(lambda: torch.linalg.qr(random)[0], random.device)
    return basis


def _eigen(symmetric: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvalues of a symmetric matrix, at least 0 and rising, and its eigenvectors."""
    values, vectors = torch.linalg.eigh(symmetric)
    return values.clamp(min=0), vectors


def _products(
    delta: Delta, shape: LinearShape, right: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return D^T D right, (inputs, columns), and the diagonal of D^T D, (inputs,); in float64.

    Args:
        delta: Of one linear.
        shape: The shape of the linear.
        right: (inputs, columns) float64.
    """
    device = delta.device
    # Squares of deltas that are very large or small would not fit float32.
    stride = max(1, min(SAMPLE, delta.numel // (RUN * SAMPLE)))
    largest = float(delta.sample(stride).abs().max())
    scale = 1 / largest if largest > 0 else 1.0
    basis = right.to(device, delta.dtype)
    whole = _read_whole(delta, shape) if shape.inputs_first else None
    rows = shape.rows(device)
    size = -(-len(rows) // GROUPS)
    groups = [rows[start : start + size] for start in range(0, len(rows), size)]

    def work(
        shared: Iterator[list[tuple[int, int]]],
    ) -> list[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
        (reader,), _ = delta_chunks([delta])
        projection = Buffer(delta.dtype, device)
        sums = []
        for group in shared:
            product = torch.zeros_like(basis)
            squares = basis.new_zeros(shape.inputs, dtype=torch.float64)
            for start, stop in group:
                if whole is None:
                    read = reader.read(start * shape.inputs, stop * shape.inputs)
                    block = read.view(stop - start, shape.inputs)
                else:
                    block = whole[start:stop].contiguous()
                block.mul_(scale)
                projected = projection.of((stop - start) * basis.shape[1]).view(stop - start, -1)
                torch.mm(block, basis, out=projected)
                product.addmm_(block.t(), projected)
                squares += block.square().sum(0)
            sums.append((group[0][0], (product, squares)))
        return sums

    found = in_order(share(work, groups, device, summing=True))
    product, squares = (
        torch.stack([part.double() for part in parts]).sum(0) for parts in zip(*found, strict=True)
    )
    return product.cpu() / scale**2, squares.cpu() / scale**2


def _read_whole(delta: Delta, shape: LinearShape) -> torch.Tensor:
    """Return a delta that is stored (inputs, outputs) as an (outputs, inputs) matrix."""
    whole = torch.empty(delta.numel, dtype=delta.dtype, device=delta.device)
    (reader,), _ = delta_chunks([delta])
    for start, stop in delta.chunks():
        whole[start:stop] = reader.read(start, stop)
    return shape.matrix(whole)
