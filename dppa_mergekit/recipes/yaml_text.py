"""The YAML of recipes, and what is wrong with a text that is none."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from dppa_mergekit.errors import RecipeError

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


def read_documents(path: Path) -> list[dict[str, object]]:
    """Return the recipes in a file, at least one.

    Raises:
        RecipeError: The file cannot be read, is not YAML, or holds something else.
    """
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}.") from error
    except YAML_ERRORS as error:
        raise RecipeError(f"{path} is not YAML: {describe_yaml_error(error)}.") from error
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise RecipeError(f"{path} holds no recipe; allowed is a mapping with merge_method.")
    return documents


class _Dumper(yaml.SafeDumper):
    """Writes a filter with its value on one line, since a recipe may hold hundreds of them."""


def _write_mapping(dumper: _Dumper, mapping: dict[str, object]) -> yaml.MappingNode:
    flow = "value" in mapping and mapping.keys() <= {"filter", "value"}
    return dumper.represent_mapping("tag:yaml.org,2002:map", mapping, flow_style=flow)


_Dumper.add_representer(dict, _write_mapping)


def write_document(content: Mapping[str, object], comment: str = "") -> str:
    """Return the text of a recipe's file.

    Args:
        content: The content of its YAML.
        comment: Lines to begin with; empty for none.
    """
    lines = "".join(f"# {line}\n" for line in comment.splitlines())
    return lines + yaml.dump(
        dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100
    )
