"""The errors of this package.

Each is one sentence that names the thing, what was found and what is allowed. They are click
exceptions, so that mergekit's own commands, which are click commands, end with that sentence
alone and exit status 1; and runtime errors, so that pydantic lets them pass unchanged while
mergekit plans (a ValueError would be rewrapped, with a traceback and a link).
"""

import click


class DppaError(click.ClickException, RuntimeError):
    """A mistake in what the user gave: a recipe, a parameter, a checkpoint."""


class ParameterError(DppaError):
    """A parameter's value is not allowed."""


class RecipeError(DppaError):
    """The recipe asks for what this method cannot do."""


class CheckpointError(DppaError):
    """A checkpoint is damaged, incomplete, or does not fit the base model."""


def first_line(error: Exception) -> str:
    """The first line of what an error of another package says, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
