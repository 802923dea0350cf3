"""Comparisons of whole chunks, by NumPy on a CPU: torch takes several times as long there."""

import numpy
import torch


def greater(values: torch.Tensor, bound: float, out: torch.Tensor) -> torch.Tensor:
    """Where a value is greater than the bound, into `out`, which is bool and returned."""
    if values.device.type == "cpu":
        numpy.greater(values.numpy(), bound, out=out.numpy())
        return out
    return torch.gt(values, bound, out=out)


def equal(values: torch.Tensor, value: int, out: torch.Tensor) -> torch.Tensor:
    """Where a value equals another, into `out`, which is bool and returned."""
    if values.device.type == "cpu":
        numpy.equal(values.numpy(), value, out=out.numpy())
        return out
    return torch.eq(values, value, out=out)


def number(mask: torch.Tensor) -> int:
    """How many elements of a mask are true."""
    if mask.device.type == "cpu":
        return int(numpy.count_nonzero(mask.numpy()))
    return int(mask.sum())


def places(mask: torch.Tensor) -> torch.Tensor:
    """(true elements,) int64, where they are, ascending."""
    if mask.device.type != "cpu":
        return mask.nonzero().flatten()
    flat = mask.numpy()
    true = int(numpy.count_nonzero(flat))
    if SPARSE < true / max(1, len(flat)) < DENSE:
        # Up to a tenth of true elements NumPy jumps from one to the next, which soon is slower
        # than to look at all: to see more than a tenth, it is shown more.
        flat = numpy.concatenate([flat, numpy.ones(len(flat) // 8 + 1, numpy.bool_)])
    return torch.from_numpy(numpy.flatnonzero(flat)[:true])


def packed(mask: torch.Tensor) -> torch.Tensor:
    """(elements / 8, rounded up) uint8, a bit for each; the lowest of a byte is the first."""
    if mask.device.type == "cpu":
        return torch.from_numpy(numpy.packbits(mask.numpy(), bitorder="little"))
    padded = torch.nn.functional.pad(mask, (0, -mask.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, device=mask.device)).sum(1).to(torch.uint8)


def unpacked(bits: torch.Tensor, length: int) -> torch.Tensor:
    """(length,) bool: the mask that was packed."""
    if bits.device.type == "cpu":
        mask = numpy.unpackbits(bits.numpy(), count=length, bitorder="little")
        return torch.from_numpy(mask.view(numpy.bool_))
    single = bits[:, None] >> torch.arange(8, device=bits.device, dtype=torch.uint8) & 1
    return single.flatten()[:length].bool()


SPARSE, DENSE = 0.04, 0.1
"""Shares of true elements between which NumPy finds them faster if there are more."""
