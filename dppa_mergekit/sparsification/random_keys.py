"""Keys of a random selection, from a counter-based generator.

The key of an element is a hash of its flat index: two rounds of the 32-bit finaliser of
MurmurHash3, each with a word of its own from the SHA-256 of seed and name. So a draw depends on
neither order, chunk, thread nor device.
"""

import hashlib
import struct
from collections.abc import Sequence
from functools import partial

import torch

from dppa_mergekit.deltas.delta import Delta
from dppa_mergekit.deltas.kernel import randomize
from dppa_mergekit.deltas.keys import HashedKeys
from dppa_mergekit.deltas.tie_order import murmur_finaliser


def random_keys(delta: Delta, seed: int, name: Sequence[str]) -> HashedKeys:
    """The keys of the elements of one linear.

    Args:
        delta: Delta of the linear.
        seed: Seed of the recipe.
        name: Model, tensor and expert; tells the draw of this linear from all others.
    """
    text = "\0".join([str(seed), *name]).encode("utf-8", "surrogateescape")
    first, second = struct.unpack("<II", hashlib.sha256(text).digest()[:8])
    hash_indices = partial(_random, first, second)
    return HashedKeys(delta.numel, delta.device, hash_indices, words=(first, second))


def _random(first: int, second: int, index: torch.Tensor) -> torch.Tensor:
    """(n,) keys of (n,) int64 indices, which may be overwritten."""
    if randomize(index, first, second):
        return index
    return murmur_finaliser(murmur_finaliser(index ^ first) ^ second)
