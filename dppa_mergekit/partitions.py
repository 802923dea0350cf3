"""The kept elements of a linear, partition by partition: what a model in memory needs of a delta.

Of every kept element the fine-tuned and the base value are held, and a bitmap says where they
belong. So a factor is set by writing base + weight * (factor * delta) to the places of one
partition: nothing else is touched, and nothing drifts, however often it is done.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from dppa_mergekit.deltas import Buffer, Delta, chunks, delta_chunks
from dppa_mergekit.kernel import passes_over
from dppa_mergekit.masks import packed, places, unpacked
from dppa_mergekit.sparsification import Pruned
from dppa_mergekit.threads import in_order, share


@dataclass(frozen=True)
class Partition:
    """The elements of one linear that one factor holds for.

    Attributes:
        rate: The pruning rate that they survive, and the next higher does not: 90, 80, ... 0.
        bits: (numel / 8, rounded up) uint8, set where an element is; a byte's lowest bit first.
        ends: Chunk by chunk, how many elements there are up to its end.
        delta: (kept,) of these elements, in flat order.
        divisor: What the delta is divided by first (DARE: the density).
    """

    rate: int
    bits: torch.Tensor
    ends: Sequence[int]
    delta: Delta
    divisor: float

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        held = (self.bits, self.delta.tuned, self.delta.base)
        return sum(each.nbytes for each in held if each is not None)

    def to(self, device: torch.device) -> "Partition":
        """The same on another device."""
        base = self.delta.base
        delta = Delta(self.delta.tuned.to(device), None if base is None else base.to(device))
        return replace(self, bits=self.bits.to(device), delta=delta)

    def place(
        self, factor: float, weight: float, out: torch.Tensor, dtypes: Sequence[torch.dtype]
    ) -> None:
        """Write base plus the weighted, amplified delta to where the elements belong.

        Args:
            factor: Of the partition.
            weight: Of the model.
            out: (numel,) contiguous, on the partition's device; other elements stay.
            dtypes: What a sum is cast to, one after the other, before it is cast to that of `out`.
        """
        places_of = chunks(out.numel(), out.device)
        passes = passes_over(self.delta)
        if any(dtype != self.delta.tuned.dtype for dtype in (*dtypes, out.dtype)):
            passes = None
        starts = (0, *self.ends)

        def work(numbers: Iterator[int]) -> None:
            for number in numbers:
                start, stop = places_of[number]
                first, last = starts[number], starts[number + 1]
                bits = self.bits[start // 8 : (stop + 7) // 8]
                part = out[start:stop]
                if passes is not None:
                    passes.place(first, last, bits.numpy(), self.divisor, factor, weight, part)
                    continue
                values = self._sums(first, last, factor, weight)
                for dtype in (*dtypes, out.dtype):
                    values = values.to(dtype)
                part.index_copy_(0, places(unpacked(bits, stop - start)), values)

        share(work, range(len(places_of)), out.device)

    def _sums(self, first: int, last: int, factor: float, weight: float) -> torch.Tensor:
        base = self.delta.base
        assert base is not None
        origin = base[first:last].to(self.delta.dtype)
        values = self.delta.tuned[first:last].to(self.delta.dtype) - origin
        if self.divisor != 1.0:
            values.div_(self.divisor)
        # A merge adds deltas to a sum that begins with 0, which leaves no -0.
        return values.mul_(factor).mul_(weight).add_(0.0).add_(origin)


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
                here = places(mask)
                tuned, origin = (
                    each[start:stop].index_select(0, here) for each in (delta.tuned, base)
                )
                held.append((packed(mask), tuned, origin))
            found.append((start, held))
        return found

    found = in_order(share(work, delta.chunks(), delta.device))
    made = []
    for position in range(number):
        of_chunks = [each[position] for each in found]
        ends, end = [], 0
        for _, tuned, _ in of_chunks:
            end += tuned.numel()
            ends.append(end)
        bits, tuned, origin = (torch.cat(parts) for parts in zip(*of_chunks, strict=True))
        made.append(
            Partition(pruning.rates[position], bits, ends, Delta(tuned, origin), pruning.divisor)
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
        kept = cut.kept(start, of_chunk)
        yield kept if smaller is None else kept & ~smaller
        smaller = kept
