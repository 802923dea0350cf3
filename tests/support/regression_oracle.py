"""An independent statement of the combination by inputs, by the full normal equations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]


def regress(
    base: FloatArray,
    amplified: Sequence[FloatArray],
    moments: Sequence[FloatArray],
    weights: Sequence[float],
    shrinkage: float = 0.95,
    ridge: float = 0.001,
    scale: float = 1.0,
) -> FloatArray:
    """base + the delta that acts on every model's inputs as its own does (section 1, by inputs).

    `base` and deltas are (outputs, inputs), `moments` are (inputs, inputs); all in float64.
    """
    left: FloatArray = np.zeros(base.shape)
    right: FloatArray = np.zeros((base.shape[1], base.shape[1]))
    for delta, moment, weight in zip(amplified, moments, weights, strict=True):
        size = np.trace(moment) / len(moment)
        scaled = moment.astype(np.float64) / (size if size > 0 else 1.0)
        scaled = shrinkage * scaled + (1 - shrinkage) * np.diag(np.diag(scaled))
        scaled = weight * (scaled + ridge * np.eye(len(moment)))
        left = left + delta.astype(np.float64) @ scaled
        right = right + scaled
    return np.asarray(base + scale * np.linalg.solve(right, left.T).T)
