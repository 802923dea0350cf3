"""Masks of whole chunks; NumPy computes them on a CPU, where torch takes several times as long."""

import numpy
import torch

SPARSE, DENSE = 0.04, 0.1
"""Shares of true elements between which NumPy finds them faster if more are added."""


def greater(values: torch.Tensor, bound: float, out: torch.Tensor) -> torch.Tensor:
    """Write to `out`, and return, the mask of the values that are greater than a bound."""
    if values.device.type == "cpu":
        numpy.greater(values.numpy(), bound, out=out.numpy())
        return out
    return torch.gt(values, bound, out=out)


def equal(values: torch.Tensor, value: int, out: torch.Tensor) -> torch.Tensor:
    """Write to `out`, and return, the mask of the values that equal another."""
    if values.device.type == "cpu":
        numpy.equal(values.numpy(), value, out=out.numpy())
        return out
    return torch.eq(values, value, out=out)


def count_true(mask: torch.Tensor) -> int:
    """Return the number of true elements of a mask."""
    if mask.device.type == "cpu":
        return int(numpy.count_nonzero(mask.numpy()))
    return int(mask.sum())


def true_indices(mask: torch.Tensor) -> torch.Tensor:
    """Return the indices of the true elements: (true elements,) int64, ascending."""
    if mask.device.type != "cpu":
        return mask.nonzero().flatten()
    flat = mask.numpy()
    true = int(numpy.count_nonzero(flat))
    if SPARSE < true / max(1, len(flat)) < DENSE:
        # Up to a tenth of true elements, NumPy jumps from one to the next, which is soon slower
        # than its other way, to visit every element. True elements at the end raise the share
        # above a tenth.
        flat = numpy.concatenate([flat, numpy.ones(len(flat) // 8 + 1, numpy.bool_)])
    return torch.from_numpy(numpy.flatnonzero(flat)[:true])


def pack_bits(mask: torch.Tensor) -> torch.Tensor:
    """Pack a mask into bits: (elements / 8, rounded up) uint8, the lowest bit of a byte first."""
    if mask.device.type == "cpu":
        return torch.from_numpy(numpy.packbits(mask.numpy(), bitorder="little"))
    padded = torch.nn.functional.pad(mask, (0, -mask.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, device=mask.device)).sum(1).to(torch.uint8)


def unpack_bits(bits: torch.Tensor, length: int) -> torch.Tensor:
    """Return the (length,) bool mask that `pack_bits` packed."""
    if bits.device.type == "cpu":
        mask = numpy.unpackbits(bits.numpy(), count=length, bitorder="little")
        return torch.from_numpy(mask.view(numpy.bool_))
    single = bits[:, None] >> torch.arange(8, device=bits.device, dtype=torch.uint8) & 1
    return single.flatten()[:length].bool()
