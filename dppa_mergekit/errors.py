"""The errors of this package.

The message of each is one sentence: the thing, the value that was found, and what is allowed. They
are click exceptions, so that mergekit's own commands, which are click commands, end with that
sentence alone and exit status 1. They are runtime errors, so that pydantic lets them pass unchanged
while mergekit plans; it would wrap a ValueError, with a traceback and a link.
"""

import click


class DppaError(click.ClickException, RuntimeError):
    """A mistake in the user's input: a recipe, a parameter, a checkpoint.

    Example:
        >>> from dppa_mergekit import DppaError, PartitionAmplification
        >>> try:
        ...     PartitionAmplification({95: 2.0})
        ... except DppaError as error:
        ...     print(error.message)
        There is no 95 partition; allowed are 90, 80, 70, 60, 50, 40, 30, 20, 10, 0.
    """


class ParameterError(DppaError):
    """A parameter has a value that is not allowed."""


class RecipeError(DppaError):
    """The recipe asks for something that its method cannot do."""


class CheckpointError(DppaError):
    """A checkpoint is damaged, incomplete, or does not fit the base model."""


def first_line(error: Exception) -> str:
    """Return the first line of another package's error message, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
