"""The kept elements of a linear, partition by partition: what a model in memory needs of a delta.

Of every kept element the fine-tuned and the base value are held, and a bitmap says where they
belong. So a factor is set by writing base + weight * (factor * delta) to the places of one
partition: nothing else is touched, and nothing drifts, however often it is done.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from dppa_mergekit.deltas.delta import Buffer, Delta, delta_chunks
from dppa_mergekit.deltas.kernel import passes_over
from dppa_mergekit.deltas.masks import pack_bits, true_indices, unpack_bits
from dppa_mergekit.deltas.threads import in_order, share
from dppa_mergekit.sparsification.amplification import Pruned


@dataclass(frozen=True)
class Partition:
    """The elements of one linear that one factor holds for.

    Attributes:
        rate: The pruning rate that they survive, and the next higher does not: 90, 80, ... 0.
        bits: (numel / 8, rounded up) uint8, set where an element is; a byte's lowest bit first.
        spans: (start, stop) of every chunk in which elements were counted.
        ends: Chunk by chunk, how many elements there are up to its end.
        delta: (kept,) of these elements, in flat order.
        divisor: What the delta is divided by first (DARE: the density).
    """

    rate: int
    bits: torch.Tensor
    spans: Sequence[tuple[int, int]]
    ends: Sequence[int]
    delta: Delta
    divisor: float

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        held = (self.bits, self.delta.fine_tuned, self.delta.base)
        return sum(each.nbytes for each in held if each is not None)

    def to(self, device: torch.device) -> "Partition":
        """The same on another device."""
        base = self.delta.base
        delta = Delta(self.delta.fine_tuned.to(device), None if base is None else base.to(device))
        return replace(self, bits=self.bits.to(device), delta=delta)

    def _write(
        self,
        number: int,
        start: int,
        factor: float,
        weight: float,
        part: torch.Tensor,
        dtypes: Sequence[torch.dtype],
    ) -> None:
        """Write base plus the weighted, amplified delta to the places of one chunk.

        Args:
            number: Of the chunk.
            start: Where it begins.
            factor: Of the partition.
            weight: Of the model.
            part: The chunk's part of the weights; other elements stay.
            dtypes: What sums are cast to, one after the other.
        """
        first, last = self.ends[number - 1] if number else 0, self.ends[number]
        bits = self.bits[start // 8 : (start + part.numel() + 7) // 8]
        passes = passes_over(self.delta)
        if passes is not None and all(each == self.delta.fine_tuned.dtype for each in dtypes):
            passes.write_kept(first, last, bits.numpy(), self.divisor, factor, weight, part)
            return
        values = self._sums(first, last, factor, weight)
        for dtype in dtypes:
            values = values.to(dtype)
        part.index_copy_(0, true_indices(unpack_bits(bits, part.numel())), values)

    def _sums(self, first: int, last: int, factor: float, weight: float) -> torch.Tensor:
        values, origin = self._values(first, last)
        # A merge adds deltas to a sum that begins with 0, which leaves no -0.
        return values.mul_(factor).mul_(weight).add_(0.0).add_(origin)

    def _values(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The delta, after its division, and the base of some elements."""
        base = self.delta.base
        assert base is not None
        origin = base[first:last].to(self.delta.dtype)
        values = self.delta.fine_tuned[first:last].to(self.delta.dtype) - origin
        return (values if self.divisor == 1.0 else values.div_(self.divisor)), origin

    def gradient(self, of_weights: torch.Tensor) -> float:
        """The derivative in the factor, at weight 1: <gradient, delta> over the elements.

        Args:
            of_weights: (numel,) the gradient in the linear's weights.
        """
        total = 0.0
        for number, (start, stop) in enumerate(self.spans):
            first, last = self.ends[number - 1] if number else 0, self.ends[number]
            here = true_indices(unpack_bits(self.bits[start // 8 : (stop + 7) // 8], stop - start))
            values, _ = self._values(first, last)
            gradient = of_weights[start:stop].index_select(0, here).to(values.dtype)
            total += float(torch.dot(gradient, values))
        return total


def place(
    factors: Sequence[tuple[Partition, float]],
    weight: float,
    out: torch.Tensor,
    dtypes: Sequence[torch.dtype],
) -> None:
    """Write base plus the weighted, amplified delta to where the elements of partitions belong.

    Chunk by chunk, so that what several partitions have in a chunk is written while it is cached.

    Args:
        factors: Partitions of one linear, one at least, each with its factor.
        weight: Of the model.
        out: (numel,) contiguous, on the partitions' device; other elements stay.
        dtypes: What a sum is cast to, one after the other, before it is cast to that of `out`.
    """
    # Wherever the partitions are now: in the chunks in which they were counted.
    of_chunks = list(enumerate(factors[0][0].spans))

    def work(numbered: Iterator[tuple[int, tuple[int, int]]]) -> None:
        for number, (start, stop) in numbered:
            for partition, factor in factors:
                partition._write(
                    number, start, factor, weight, out[start:stop], (*dtypes, out.dtype)
                )

    share(work, of_chunks, out.device)


def partitions(pruned: Pruned) -> list[Partition]:
    """The partitions of a pruned delta, copied, one for each of its rates.

    Raises:
        ValueError: The delta is dense, or its base is not known.
    """
    pruning, delta = pruned.pruning, pruned.pruning.delta
    base = delta.base
    if not pruning.rates or base is None:
        raise ValueError("only the delta of a linear from its base has partitions")
    number = len(pruning.rates)

    def work(
        places_of: Iterator[tuple[int, int]],
    ) -> list[tuple[int, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]]:
        (reader,), _ = delta_chunks([delta])
        buffer = Buffer(delta.dtype, delta.device)
        found = []
        for start, stop in places_of:
            held = []
            for mask in _masks(pruned, start, reader.read(start, stop), buffer):
                here = true_indices(mask)
                fine_tuned, origin = (
                    each[start:stop].index_select(0, here) for each in (delta.fine_tuned, base)
                )
                held.append((pack_bits(mask), fine_tuned, origin))
            found.append((start, held))
        return found

    spans = delta.chunks()
    found = in_order(share(work, spans, delta.device))
    made = []
    for position in range(number):
        of_chunks = [each[position] for each in found]
        ends, end = [], 0
        for _, fine_tuned, _ in of_chunks:
            end += fine_tuned.numel()
            ends.append(end)
        bits, fine_tuned, origin = (torch.cat(parts) for parts in zip(*of_chunks, strict=True))
        made.append(
            Partition(
                pruning.rates[position],
                bits,
                spans,
                ends,
                Delta(fine_tuned, origin),
                pruning.divisor,
            )
        )
    return made


def _masks(
    pruned: Pruned, start: int, delta: torch.Tensor, buffer: Buffer
) -> Iterator[torch.Tensor]:
    """Where the elements of each partition are, in the chunk that begins at `start`."""
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
