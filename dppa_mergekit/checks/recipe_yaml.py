"""The YAML of a recipe, read as mergekit reads it, but for keys that are there twice."""

from __future__ import annotations

from collections.abc import Hashable

import yaml

from dppa_mergekit.checks.findings import Finding, error
from dppa_mergekit.recipes.yaml_text import YAML_ERRORS, describe_yaml_error

MERGE_KEY = "tag:yaml.org,2002:merge"
"""The tag of `<<`, whose mapping may be overridden."""


def parse(text: str) -> tuple[list[dict[str, object]], list[Finding]]:
    """Return the recipes in a text, and what is wrong with it as YAML; none if one is no mapping.

    Several documents are the stages of mergekit-multi.
    """
    documents: list[dict[str, object]] = []
    try:
        loader = _Loader(text)
        while loader.check_data():  # type: ignore[no-untyped-call]
            documents.append(loader.get_data())
    except YAML_ERRORS as problem:
        return [], [error("recipe", f"it is not YAML: {describe_yaml_error(problem)}.")]
    if not documents or not all(document and isinstance(document, dict) for document in documents):
        return [], [error("recipe", "it is not a mapping with merge_method.")]
    return documents, loader.findings


class _Loader(yaml.SafeLoader):
    """Reads YAML and reports repeated keys; mergekit takes the last without a word."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.findings: list[Finding] = []


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    lines: dict[object, int] = {}
    for key_node, _ in node.value:
        if key_node.tag == MERGE_KEY:
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(
                "while constructing a mapping",
                node.start_mark,
                "found unhashable key",
                key_node.start_mark,
            )
        line = key_node.start_mark.line + 1
        if key in lines:
            loader.findings.append(
                error(f"line {line}", f"{key} is already set in line {lines[key]}: keep one.")
            )
        lines.setdefault(key, line)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
