"""Counted nouns and lists of names, as messages and reports write them."""

from collections.abc import Sequence


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with what it counts, in the singular or the plural.

    Args:
        number: 0 is written "no".
        one: The noun in the singular, with its verb where one follows.
        many: The same in the plural; the singular with an s where None.

    >>> count(1, "tensor is", "tensors are")
    '1 tensor is'
    >>> count(0, "error")
    'no errors'
    """
    phrase = one if number == 1 else many or f"{one}s"
    return f"{number or 'no'} {phrase}"


def join_names(names: Sequence[str]) -> str:
    """Return names as a sentence lists them: separated by commas, the last by "and".

    >>> join_names(["dppa", "dppa_ties", "dare_dpa"])
    'dppa, dppa_ties and dare_dpa'
    """
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last
