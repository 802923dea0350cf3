"""What is wrong with a text that is not YAML."""

import yaml

YAML_ERRORS = (yaml.YAMLError, ValueError)
"""The errors of PyYAML for a text that is not YAML; a ValueError for a date such as 2024-02-30."""


def describe_yaml_error(error: yaml.YAMLError | ValueError) -> str:
    """Return what is wrong with a text that is not YAML, and where, on one line.

    Args:
        error: One of `YAML_ERRORS`. PyYAML's own message of an error takes several lines.
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    if isinstance(error, yaml.reader.ReaderError):
        return (
            f"unacceptable character #x{error.character:04x} (character {error.position + 1} of "
            f"the file)"
        )
    return " ".join(str(error).split())
