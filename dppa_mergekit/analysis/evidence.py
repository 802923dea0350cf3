"""What was measured of pruning and merging, in two tables, and the bounds of `analyze`'s advice.

All shares are Domain-Ratios or, of the six experts, Task-Ratios on test items, in percent of the
fine-tuned models', from examples/paper/tables, with the commands that give them. A pair of numbers
is the least and the largest of several models, seeds or ways of choosing weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeAlias

Kept: TypeAlias = tuple[int, int]
"""The least and the largest share of a skill that was kept, in percent."""

WOULD_DO = 90
"""The least share, in percent, of which a method "would do": the paper calls for DPPA where DARE at
pruning rate 90 % keeps less (4.6.1)."""

LIKE = 1.5
"""Deltas or densities within this ratio of a measured one count as measured. The value is a choice:
those of PRUNED lie 1.5 to 3.2 apart, and densities 2 to 2.5, so that the advice tells what lies
between two."""

CLOSE = 1.25
"""Up to this multiple of the least, a divergence counts as no worse. It is a choice, too."""

RESCALED = ("dare_linear", "dare_dpa")
"""The methods that prune at random and rescale. What they keep of a model falls as the noise of the
rescaling grows, of some models later than of others: `bound_noise` holds for all that were
measured. No quantity of the deltas was found that tells what the other methods keep."""

METHODS = (*RESCALED, "dp", "dppa")
"""The methods that prune one model, the simplest first. `dare_dpa` at factors 1 is DARE on the
linears alone; `dppa` is `dp` with factors that a search found."""


@dataclass(frozen=True)
class Pruned:
    """Fine-tuned models that were pruned, each by itself.

    Attributes:
        what: What they are, in words.
        relative: The deviation of their deltas, relative to that of the base's weights.
        kept: Density -> method -> the share of their skill that was kept.
    """

    what: str
    relative: float
    kept: Mapping[float, Mapping[str, Kept]]


def noise_of(relative: float, density: float) -> float:
    """Return the deviation that DARE's random choice adds, relative to the base's weights.

    DARE turns a delta x into x / d with probability d, else into 0: a variance of x^2 (1 - d) / d.

    Args:
        relative: The deviation of the deltas, relative to that of the base's weights.
        density: d, above 0.
    """
    return relative * math.sqrt((1 - density) / density)


def _row(*kept: Kept) -> dict[str, Kept]:
    """Return method -> kept, in the order of METHODS; `dppa` may be missing."""
    return dict(zip(METHODS, kept, strict=False))


PRUNED = (
    Pruned(
        "light fine-tunes of SmolLM2-135M",
        0.024,
        {
            0.2: _row((100, 101), (99, 101), (89, 98), (96, 99)),
            0.1: _row((98, 102), (97, 100), (81, 96), (94, 98)),
            0.05: _row((90, 102), (92, 100), (59, 82)),
            0.02: _row((4, 91), (79, 98), (9, 51)),
        },
    ),
    Pruned(
        "hard fine-tunes of SmolLM2-135M",
        0.066,
        {
            0.2: _row((97, 101), (95, 101), (100, 102), (100, 102)),
            0.1: _row((25, 100), (90, 101), (97, 101), (101, 105)),
            0.05: _row((0, 0), (56, 101), (79, 92)),
            0.02: _row((0, 0), (0, 6), (22, 44)),
        },
    ),
    Pruned(
        "hard fine-tunes of tiny Llamas",
        0.209,
        {
            0.2: _row((94, 98), (97, 99), (99, 100), (99, 100)),
            0.1: _row((67, 73), (83, 91), (96, 100), (98, 100)),
            0.05: _row((5, 21), (23, 52), (91, 100)),
            0.02: _row((0, 0), (0, 1), (86, 100)),
        },
    ),
    Pruned(
        "the quickstart's and six more fine-tunes of a tiny Llama",
        0.315,
        {
            0.2: _row((75, 90), (88, 98), (95, 100), (96, 100)),
            0.1: _row((12, 48), (38, 80), (85, 100), (87, 100)),
            0.05: _row((0, 0), (0, 31), (78, 100)),
            0.02: _row((0, 0), (0, 0), (70, 100)),
        },
    ),
)
"""Tables "Where methods cross" and 1 in examples/paper/tables: three models each, of the last row
nine (one seed; of the tiny ones means over three)."""


def list_by_noise(method: str) -> list[tuple[float, Kept]]:
    """Return noise -> kept of a method, from the least noise on."""
    return sorted(
        (noise_of(measured.relative, density), kept[method])
        for measured in PRUNED
        for density, kept in measured.kept.items()
        if method in kept
    )


def bound_noise(method: str) -> tuple[float, Kept]:
    """Return the largest noise up to which a method always kept enough, and what it kept there."""
    known = list(takewhile(lambda point: point[1][0] >= WOULD_DO, list_by_noise(method)))
    shares = [share for _, kept in known for share in kept]
    return known[-1][0], (min(shares), max(shares))


@dataclass(frozen=True)
class Merged:
    """Fine-tuned models that were merged.

    Attributes:
        what: What they are, in words.
        models: The number of models in a merge.
        relative: The deviation of their deltas, relative to that of the base's weights.
        combinations: Combination -> the share of the skills that the merge kept, the mean over
            domains. All densities from 0.1 to 1, and both DARE's deltas and those kept by
            magnitude; what is learned has at least a number for each block.
        merges: The number of merges; shares are the least and the largest of all of them.
        leads: How far the best combination by inputs was ahead of the best sum with one weight a
            model, the least and the largest of several merges; None for one merge.
    """

    what: str
    models: int
    relative: float
    combinations: Mapping[str, Kept]
    merges: int = 1
    leads: tuple[int, int] | None = None

    @property
    def lead(self) -> tuple[int, int]:
        """The least and the largest lead of the best combination by inputs."""
        if self.leads is not None:
            return self.leads
        one = self.combinations[INPUTS][1] - self.combinations[SUM][1]
        return one, one


SUM = "by a sum with one weight a model"
SIGNS = "by TIES"
LEARNED = "by a sum with learned weights"
INPUTS = "by inputs, with prompts"
LEARNED_INPUTS = "by inputs, with learned factors"

COMBINATIONS = (SUM, SIGNS, LEARNED, INPUTS, LEARNED_INPUTS)
"""What a user can choose, in the order of reports."""

MERGED = (
    Merged(
        "three light fine-tunes of SmolLM2-135M",
        3,
        0.024,
        {
            SUM: (57, 65),
            SIGNS: (55, 55),
            LEARNED: (67, 78),
            INPUTS: (82, 97),
            LEARNED_INPUTS: (94, 94),
        },
    ),
    Merged(
        "two short fine-tunes of SmolLM2-135M that rehearsed",
        2,
        0.028,
        {
            SUM: (66, 92),
            SIGNS: (29, 78),
            LEARNED: (77, 95),
            INPUTS: (94, 95),
            LEARNED_INPUTS: (96, 96),
        },
    ),
    Merged(
        "two short fine-tunes of SmolLM2-135M",
        2,
        0.04,
        {
            SUM: (40, 54),
            SIGNS: (4, 11),
            LEARNED: (58, 69),
            INPUTS: (40, 56),
            LEARNED_INPUTS: (83, 83),
        },
    ),
    Merged(
        "three short fine-tunes of SmolLM2-135M",
        3,
        0.041,
        {
            SUM: (2, 23),
            SIGNS: (0, 2),
            LEARNED: (65, 65),
            INPUTS: (35, 68),
            LEARNED_INPUTS: (87, 88),
        },
    ),
    Merged(
        "three hard fine-tunes of SmolLM2-135M",
        3,
        0.066,
        {
            SUM: (23, 62),
            SIGNS: (40, 40),
            LEARNED: (35, 70),
            INPUTS: (89, 95),
            LEARNED_INPUTS: (96, 96),
        },
    ),
    Merged(
        "two hard fine-tunes of SmolLM2-135M",
        2,
        0.068,
        {
            SUM: (49, 58),
            SIGNS: (50, 50),
            LEARNED: (47, 82),
            INPUTS: (93, 98),
            LEARNED_INPUTS: (99, 99),
        },
    ),
    Merged(
        "three hard fine-tunes of tiny Llamas",
        3,
        0.209,
        {
            SUM: (93, 98),
            SIGNS: (96, 96),
            LEARNED: (94, 98),
            INPUTS: (91, 99),
            LEARNED_INPUTS: (99, 99),
        },
    ),
    Merged(
        "the quickstart's three fine-tunes of a tiny Llama",
        3,
        0.313,
        {
            SUM: (85, 92),
            SIGNS: (87, 87),
            LEARNED: (89, 94),
            INPUTS: (60, 96),
            LEARNED_INPUTS: (97, 97),
        },
    ),
    Merged(
        "six hard fine-tunes of a tiny Llama",
        6,
        0.316,
        {
            SUM: (65, 84),
            SIGNS: (41, 61),
            LEARNED: (84, 92),
            INPUTS: (65, 97),
            LEARNED_INPUTS: (94, 97),
        },
    ),
    Merged(
        "the fifteen pairs of six hard fine-tunes of a tiny Llama",
        2,
        0.316,
        {SUM: (89, 100), INPUTS: (97, 100)},
        merges=15,
        leads=(-2, 6),
    ),
)
"""Tables 5, 6, "short", "six experts" and "six tiny experts" in examples/paper/tables; one training
seed of SmolLM2, three of the tiny ones."""
