"""Sizes and colors that all figures share."""

from importlib.util import find_spec

PANEL = (4.2, 3.4)
"""Width and height of a panel in inches."""


COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
"""Told apart with any kind of colour vision (Okabe and Ito)."""


def color_of(number: int) -> str:
    """The color of a line or bar; they begin anew after the last."""
    return COLORS[number % len(COLORS)]


def is_installed() -> bool:
    """Whether the extra `plots` is there."""
    return find_spec("matplotlib") is not None
