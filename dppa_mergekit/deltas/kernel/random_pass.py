"""The compiled pass that makes random numbers."""

import torch

from dppa_mergekit.deltas.kernel import library


def randomize(indices: torch.Tensor, first: int, second: int) -> bool:
    """Replace each index by a random number of 32 bits, if there is a compiled pass for it.

    Args:
        indices: (length,) int64; overwritten.
        first: A 32-bit word of the generator's key.
        second: Another one.

    Returns:
        Whether the indices were replaced.
    """
    compiled = library.load()
    if compiled is None or indices.device.type != "cpu" or not indices.is_contiguous():
        return False
    compiled.randomize(indices.data_ptr(), indices.numel(), first, second)
    return True
