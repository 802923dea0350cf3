"""The kept elements of a linear, partition by partition: all that a live model needs of a delta.

For every kept element the fine-tuned and the base value are held, and a bitmap says where it
belongs in the linear. A factor is set by writing base + weight * (factor * delta) to the elements
of one partition. Nothing else is touched, and nothing drifts, however often it is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from dppa_mergekit.deltas.delta import Buffer, Delta, delta_chunks
from dppa_mergekit.deltas.kernel import passes_over
from dppa_mergekit.deltas.masks import pack_bits, true_indices, unpack_bits
from dppa_mergekit.deltas.threads import in_order, share
from dppa_mergekit.sparsification.pruning import Pruned


@dataclass(frozen=True)
class Partition:
    """The kept elements of one linear that share a factor.

    Attributes:
        rate: The pruning rate at which they are kept, while the next higher rate prunes them:
            90, 80, ... 0.
        bits: (numel / 8, rounded up) uint8, a bit for each element of the linear, set if it is in
            the partition; the lowest bit of a byte comes first.
        spans: (start, stop) of every chunk in which the elements were counted.
        ends: Chunk by chunk, the number of elements up to the chunk's end.
        delta: (kept,) the fine-tuned and the base values of these elements, in flat order.
        divisor: The delta is divided by this first (DARE: the density).
    """

    rate: int
    bits: torch.Tensor
    spans: Sequence[tuple[int, int]]
    ends: Sequence[int]
    delta: Delta
    divisor: float

    def to(self, device: torch.device) -> Partition:
        """Return the same partition on another device."""
        base = self.delta.base
        delta = Delta(self.delta.fine_tuned.to(device), None if base is None else base.to(device))
        return replace(self, bits=self.bits.to(device), delta=delta)

    def gradient(self, of_weights: torch.Tensor) -> float:
        """Return the derivative of a loss in the factor, at weight 1.

        It is the scalar product of gradient and delta over the partition's elements.

        Args:
            of_weights: (numel,) the gradient of the loss in the linear's weights.
        """
        total = 0.0
        for chunk, (start, stop) in enumerate(self.spans):
            first, last = self._range(chunk)
            inside = true_indices(
                unpack_bits(self.bits[start // 8 : (stop + 7) // 8], stop - start)
            )
            values, _ = self._values(first, last)
            gradient = of_weights[start:stop].index_select(0, inside).to(values.dtype)
            total += float(torch.dot(gradient, values))
        return total

    def _write(
        self,
        chunk: int,
        start: int,
        factor: float,
        weight: float,
        live: torch.Tensor,
        dtypes: Sequence[torch.dtype],
    ) -> None:
        """Write base plus the weighted, amplified delta to the elements in one chunk.

        Args:
            chunk: The number of the chunk.
            start: The first element of the chunk in the linear.
            factor: The factor of the partition.
            weight: The weight of the model.
            live: (chunk,) the live weights of the chunk; elements of other partitions stay.
            dtypes: The dtypes that a sum is cast to, one after the other.
        """
        first, last = self._range(chunk)
        bits = self.bits[start // 8 : (start + live.numel() + 7) // 8]
        passes = passes_over(self.delta)
        if passes is not None and all(dtype == self.delta.fine_tuned.dtype for dtype in dtypes):
            passes.write_kept(first, last, bits.numpy(), self.divisor, factor, weight, live)
            return
        sums = self._sums(first, last, factor, weight)
        for dtype in dtypes:
            sums = sums.to(dtype)
        live.index_copy_(0, true_indices(unpack_bits(bits, live.numel())), sums)

    def _range(self, chunk: int) -> tuple[int, int]:
        """The kept elements in a chunk: the first one, and one past the last."""
        return self.ends[chunk - 1] if chunk else 0, self.ends[chunk]

    def _sums(self, first: int, last: int, factor: float, weight: float) -> torch.Tensor:
        """(last - first,) base plus the weighted, amplified delta of some kept elements."""
        values, base = self._values(first, last)
        # A merge adds deltas to a sum that begins with 0, which leaves no -0.
        return values.mul_(factor).mul_(weight).add_(0.0).add_(base)

    def _values(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(last - first,) the delta, after its division, and the base of some kept elements."""
        assert self.delta.base is not None
        base = self.delta.base[first:last].to(self.delta.dtype)
        values = self.delta.fine_tuned[first:last].to(self.delta.dtype) - base
        return (values if self.divisor == 1.0 else values.div_(self.divisor)), base


def write_factors(
    factors: Sequence[tuple[Partition, float]],
    weight: float,
    live: torch.Tensor,
    dtypes: Sequence[torch.dtype],
) -> None:
    """Write base plus the weighted, amplified delta to the elements of some partitions.

    All partitions are written chunk by chunk, while the chunk is in the cache.

    Args:
        factors: Partitions of one linear, at least one, with their factors.
        weight: The weight of the model.
        live: (numel,) the linear's live weights, contiguous, on the partitions' device; elements
            of no given partition stay.
        dtypes: The dtypes that a sum is cast to, one after the other, before that of `live`.
    """
    # The chunks are those in which the elements were counted, whatever the device is now.
    chunks = list(enumerate(factors[0][0].spans))

    def work(numbered: Iterator[tuple[int, tuple[int, int]]]) -> None:
        for chunk, (start, stop) in numbered:
            for partition, factor in factors:
                partition._write(
                    chunk, start, factor, weight, live[start:stop], (*dtypes, live.dtype)
                )

    share(work, chunks, live.device)


_Kept = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""A partition in one chunk: its packed bitmap, and the (kept,) fine-tuned and base values."""


def copy_partitions(pruned: Pruned) -> list[Partition]:
    """Copy the kept elements of a pruned linear, a partition for each pruning rate.

    Raises:
        ValueError: The delta is dense, or its base is not known.
    """
    pruning, delta = pruned.pruning, pruned.pruning.delta
    if not pruning.rates or delta.base is None:
        raise ValueError("only the delta of a linear from its base has partitions")
    base = delta.base

    def work(spans: Iterator[tuple[int, int]]) -> list[tuple[int, list[_Kept]]]:
        (reader,), _ = delta_chunks([delta])
        buffer = Buffer(delta.dtype, delta.device)
        chunks = []
        for start, stop in spans:
            kept = []
            for mask in _masks(pruned, start, reader.read(start, stop), buffer):
                inside = true_indices(mask)
                fine_tuned, origin = (
                    values[start:stop].index_select(0, inside)
                    for values in (delta.fine_tuned, base)
                )
                kept.append((pack_bits(mask), fine_tuned, origin))
            chunks.append((start, kept))
        return chunks

    spans = delta.chunks()
    chunks = in_order(share(work, spans, delta.device))
    return [
        _join(rate, [kept[index] for kept in chunks], spans, pruning.divisor)
        for index, rate in enumerate(pruning.rates)
    ]


def _join(
    rate: int, chunks: Sequence[_Kept], spans: Sequence[tuple[int, int]], divisor: float
) -> Partition:
    """Join what the chunks hold of one partition."""
    ends, end = [], 0
    for _, fine_tuned, _ in chunks:
        end += fine_tuned.numel()
        ends.append(end)
    bits, fine_tuned, base = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return Partition(rate, bits, spans, ends, Delta(fine_tuned, base), divisor)


def _masks(
    pruned: Pruned, start: int, delta: torch.Tensor, buffer: Buffer
) -> Iterator[torch.Tensor]:
    """Yield the mask of every partition, (chunk,) bool, in the chunk that begins at `start`."""
    keys = pruned.pruning.keys
    if keys is None:
        yield torch.ones(delta.numel(), dtype=torch.bool, device=delta.device)
        return
    of_chunk = keys.chunk(start, delta, buffer)
    smaller: torch.Tensor | None = None
    for cut in pruned.cuts:
        kept = cut.kept_mask(start, of_chunk)
        yield kept if smaller is None else kept & ~smaller
        smaller = kept
