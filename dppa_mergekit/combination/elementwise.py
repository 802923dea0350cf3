"""Combinations that compute every element from the same element of each delta.

They share one loop: chunk by chunk, on all of torch's threads, by the compiled pass where there is
one. Sums are accumulated in float32 (float64 for float64 models) and cast once to the output's
dtype. At density 1 and factor 1 the operations and their order are those of mergekit's
`task_arithmetic` and `ties` (mergekit/merge_methods/generalized_task_arithmetic.py, release
0.1.5), so on float32 checkpoints the results are equal bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch

from dppa_mergekit.combination.contribution import Contribution, Place
from dppa_mergekit.deltas.delta import Buffer, buffers, chunks, delta_chunks
from dppa_mergekit.deltas.kernel import CombinePass
from dppa_mergekit.deltas.threads import share
from dppa_mergekit.sparsification.pruning import PrunedChunks, amplify

Chunk: TypeAlias = Callable[[int, int, torch.Tensor], bool]
"""Writes the merged chunk [start, stop); returns whether a sum exceeds the limit."""

Combine: TypeAlias = Callable[[torch.Tensor, Sequence[PrunedChunks], int, int], None]
"""Writes the combination of the deltas' chunk [start, stop) to a chunk of zeros."""


@dataclass(frozen=True)
class ElementwiseCombination(ABC):
    """A combination of deltas element by element.

    Attributes:
        normalize: Divide by the sum of the weights.
        lambda_: Factor of the combined delta.
    """

    normalize: bool = False
    lambda_: float = 1.0

    by_inputs: ClassVar[bool] = False
    """An element does not depend on others, so shapes do not matter."""

    compiled: ClassVar[Literal["sum", "consensus"] | None] = None
    """The compiled pass that writes the same bytes as `combine`; None if there is none."""

    @abstractmethod
    def divisor(self, weights: Sequence[float], dtype: torch.dtype) -> float | None:
        """The divisor of the sum, computed in a dtype; None for no division."""

    @abstractmethod
    def combine(self, weights: Sequence[float], divisor: float | None) -> Combine:
        """The operations on one chunk by torch, where no compiled pass does the same."""

    def merge(
        self,
        place: Place,
        base: torch.Tensor,
        contributions: Sequence[Contribution],
        merged: torch.Tensor,
        limit: float,
    ) -> bool:
        """Write base plus the combined contributions; see `Combination.merge`."""
        delta = contributions[0].pruned.pruning.delta
        compute = self._compiled(contributions, limit) or self._by_torch(contributions, base, limit)

        def work(spans: Iterator[tuple[int, int]]) -> bool:
            chunk, buffer = compute(), Buffer(delta.dtype, delta.device)
            overflow = False
            for start, stop in spans:
                total = buffer.of(stop - start)
                overflow = chunk(start, stop, total) or overflow
                merged[start:stop] = total
            return overflow

        return any(share(work, chunks(base.numel(), delta.device), delta.device))

    def _compiled(
        self, contributions: Sequence[Contribution], limit: float
    ) -> Callable[[], Chunk] | None:
        """The compiled pass, if it takes all of the deltas."""
        weights = [contribution.weight for contribution in contributions]
        models = amplify([contribution.pruned for contribution in contributions], weights)
        if models is None or self.compiled is None:
            return None
        divisor = self.divisor(weights, torch.float32)
        consensus = self.compiled == "consensus"
        return lambda: CombinePass(models, consensus, divisor, self.lambda_, limit)

    def _by_torch(
        self, contributions: Sequence[Contribution], base: torch.Tensor, limit: float
    ) -> Callable[[], Chunk]:
        deltas = [contribution.pruned.pruning.delta for contribution in contributions]
        dtype, device = deltas[0].dtype, deltas[0].device
        weights = torch.tensor(
            [contribution.weight for contribution in contributions], dtype=dtype
        ).tolist()
        divisor = self.divisor(weights, dtype)

        def compute() -> Chunk:
            readers, origin = delta_chunks(deltas)
            kept = buffers(3, dtype, device)
            pruned = [
                PrunedChunks(contribution.pruned, reader, kept)
                for contribution, reader in zip(contributions, readers, strict=True)
            ]
            combine = self.combine(weights, divisor)

            def chunk(start: int, stop: int, total: torch.Tensor) -> bool:
                combine(total.zero_(), pruned, start, stop)
                if self.lambda_ != 1:
                    total.mul_(self.lambda_)
                total.add_(base[start:stop] if origin is None else origin.read(start, stop))
                low, high = torch.aminmax(total)
                return not (-limit <= float(low) and float(high) <= limit)

            return chunk

        return compute
