"""The ways to merge that are measured of every set of domains: each method at equal budget."""

from __future__ import annotations

from plan import Merging, combine

MERGINGS: tuple[Merging, ...] = (
    *combine(["task_arithmetic"], [0], ["search"]),
    # AdaMerging only knows this package's methods; `dp` at 0 % is task arithmetic.
    *combine(["dp"], [0], ["block"]),
    *combine(["dare_linear"], [90, 80], ["search"]),
    *combine(["ties", "dare_ties", "della"], [80], ["search"]),
    *combine(["dare_dpa", "dppa"], [90, 80], ["search", "block"]),
    *combine(["dare_regmean", "dppa_regmean"], [90, 80], ["given"]),
    *combine(["dppa_regmean"], [80], ["search", "block"]),
    *combine(["dppa_regmean"], [80], ["given"], observed=False),
)

COMPARED: tuple[Merging, ...] = (
    *combine(["task_arithmetic"], [0], ["search"]),
    *combine(["dppa"], [80], ["search"]),
    *combine(["dppa_regmean"], [80], ["given"]),
)
"""Those that tell how far combining by inputs is ahead of a sum."""

OTHER_GRANULARITIES: tuple[Merging, ...] = (
    # At 90 %, the only partition of a linear is all that is kept of it.
    *combine(["dppa", "dppa_regmean"], [80], ["model", "linear", "partition"]),
)
