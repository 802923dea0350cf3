"""Sizes and colors that all figures share."""

from importlib.util import find_spec

PANEL = (4.2, 3.4)
"""Width and height of a panel, in inches."""

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
"""Distinguishable with any type of color vision (Okabe and Ito)."""


def color_of(number: int) -> str:
    """Return the color of a line or bar; the colors repeat after the last one."""
    return COLORS[number % len(COLORS)]


def is_installed() -> bool:
    """Return whether the extra `plots` is installed."""
    return find_spec("matplotlib") is not None
