"""The Markdown in which `search` or `adamerge` reported how it found the numbers of a recipe."""

from __future__ import annotations

import logging
from pathlib import Path

from dppa_mergekit.storage.run_record import digest, read_records

LOG = logging.getLogger(__name__)


def read_report(recipe_file: Path) -> str:
    """Return the report beside a recipe, without its heading.

    It is empty if there is no report or no run record of the recipe, or, with a warning, if the
    recipe has changed since.
    """
    record = read_records(recipe_file.parent).get(recipe_file.name)
    report = recipe_file.with_suffix(".md")
    if not isinstance(record, dict) or not report.exists():
        return ""
    current = digest(recipe_file)
    if record.get("sha256", current) != current:
        LOG.warning(
            "%s has changed since %s wrote it; the card will not say how its factors or weights "
            "were found.",
            recipe_file,
            record.get("command"),
        )
        return ""
    lines = report.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[1:] if lines[:1] and lines[0].startswith("# ") else lines)
