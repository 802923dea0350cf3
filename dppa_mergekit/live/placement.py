"""Where and how live models are held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dppa_mergekit.checkpoints.loading_options import DEFAULT_LOADING, LoadingOptions

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Placement:
    """The device and the dtype of live models.

    Attributes:
        device: A device as torch names it.
        dtype: The dtype of the live weights; None keeps the stored one.
        loading: How models are loaded.

    Example:
        >>> from dppa_mergekit import Placement
        >>> Placement("cuda:1").device
        'cuda:1'
    """

    device: str = "cpu"
    dtype: torch.dtype | None = None
    loading: LoadingOptions = DEFAULT_LOADING


AS_STORED = Placement()
"""On the CPU, in the stored dtype."""
