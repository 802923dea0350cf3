"""Counted nouns and lists of names, as messages and reports write them."""

from collections.abc import Collection, Sequence

from dppa_mergekit.tensor_names import natural_order


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


def such_as(names: Collection[str], one: str, many: str) -> str:
    """Return how many tensors a sentence is about, the sentence, and the first of the tensors.

    Args:
        names: The names of the tensors; not empty.
        one: The sentence about one tensor, without its number and its full stop.
        many: The sentence about several.
    """
    first = min(names, key=natural_order)
    return f"{count(len(names), one, many)}{': ' if len(names) == 1 else ', such as '}{first}"
