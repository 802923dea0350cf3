"""Second moments of vectors that come in batches, without a matrix of all pairs of inputs.

A buffer holds twice as many rows as the rank. When it is full, its rows are replaced by as many
rows as the rank that have its leading singular vectors and values; what this leaves out of the
diagonal is kept. As long as no more rows come than the buffer holds, the moments are exact, as they
are where all pairs of inputs take no more memory than the buffer. `tests/benchmarks/sketch.py`
measures the loss of longer streams.
"""

from __future__ import annotations

import torch

from dppa_mergekit.moments.second_moment import SecondMoment

FIRST_ROWS = 64
"""Rows of the buffer at first: many experts see few tokens."""


class MomentSketch:
    """The sum of x x^T over all vectors x that were added."""

    def __init__(self, inputs: int, rank: int, device: torch.device) -> None:
        """Begin with no vectors.

        Args:
            inputs: The number of elements of a vector.
            rank: The rank of the moments, at least 1.
            device: The device of the vectors.
        """
        self.inputs = inputs
        self.rank = min(rank, inputs)
        self.vectors = 0
        self._is_exact = inputs <= 2 * self.rank
        self._capacity = inputs if self._is_exact else 2 * self.rank
        held = inputs if self._is_exact else min(self._capacity, FIRST_ROWS)
        self._rows = torch.zeros(held, inputs, dtype=torch.float32, device=device)
        self._filled = 0
        self._diagonal = torch.zeros(inputs, dtype=torch.float64, device=device)

    def add(self, vectors: torch.Tensor) -> None:
        """Add vectors, (number, inputs) of any floating dtype; rows of zeros are not counted."""
        values = vectors.to(self._rows.dtype)
        self.vectors += int((values != 0).any(1).sum())
        self._diagonal += values.double().square().sum(0)
        if self._is_exact:
            self._rows.addmm_(values.t(), values)
            return
        start = 0
        while start < len(values):
            if self._filled == len(self._rows):
                self._make_room()
            taken = min(len(values) - start, len(self._rows) - self._filled)
            self._rows[self._filled : self._filled + taken] = values[start : start + taken]
            self._filled += taken
            start += taken

    def moment(self) -> SecondMoment:
        """Return the mean of x x^T over the vectors, as low rank plus diagonal, on the CPU."""
        if self._is_exact:
            values, vectors = torch.linalg.eigh(self._rows.double())
            values, vectors = values[-self.rank :].clamp(min=0), vectors[:, -self.rank :]
        else:
            self._compress()
            rows = self._rows[: self.rank].double()
            values = rows.square().sum(1)
            vectors = (rows / values.clamp(min=torch.finfo(values.dtype).tiny).sqrt()[:, None]).t()
        rest = (self._diagonal - vectors.square().mv(values)).clamp(min=0)
        number = max(1, self.vectors)
        return SecondMoment(vectors.cpu().float(), (values / number).cpu(), (rest / number).cpu())

    def _make_room(self) -> None:
        held = len(self._rows)
        if held == self._capacity:
            self._compress()
            return
        grown = self._rows.new_zeros(min(self._capacity, 2 * held), self.inputs)
        grown[:held] = self._rows
        self._rows = grown

    def _compress(self) -> None:
        """Keep the leading singular vectors of the rows, times their singular values."""
        rows = self._rows[: self._filled]
        _, basis = torch.linalg.eigh((rows @ rows.t()).double())
        leading = basis[:, -self.rank :].to(rows.dtype)
        kept = leading.t() @ rows
        self._rows[: len(kept)] = kept
        self._rows[len(kept) :] = 0
        self._filled = len(kept)
