"""The paper's tables and figures with our measurements, the paper's own numbers in brackets.

In:  the results of subjects, in groups: seeds of one training, or each setting of it.
Out: `results.json`, `tables/` and `figures/` in a folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from typing import TypeAlias

from measurements import Group
from report_figures import draw_factors, draw_ladder
from report_tables import format_tables

Means: TypeAlias = "dict[str, dict[str, dict[str, dict[str, float | None]]]]"
"""Section of the results -> recipe -> domain -> `mean` and `deviation` of the Domain-Ratio."""


def write_report(folder: Path, groups: Sequence[Group]) -> None:
    """Write results, tables and figures of all groups.

    Args:
        folder: Where they go; each subject has a subfolder of its own name there.
        groups: Their subjects must have been analyzed.
    """
    results = {
        group.title: {"subjects": dict(group.results), "means": compute_means(group)}
        for group in groups
    }
    text = json.dumps(results, indent=1) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    tables = folder / "tables"
    tables.mkdir(exist_ok=True)
    for group in groups:
        analysis = folder / next(iter(group.results)) / "analysis"
        for name in ("density", "structure", "offsets"):
            shutil.copy(analysis / f"{name}.png", figures / f"{group.slug}_{name}.png")
        draw_ladder(group, figures / f"{group.slug}_ladder.png")
        if any("_at_" in name for name in group.recipe_names("amplified")):
            draw_factors(group, figures / f"{group.slug}_factors.png")
        (tables / f"{group.slug}.md").write_text(format_tables(group), encoding="utf-8")


def compute_means(group: Group) -> Means:
    """Return the mean Domain-Ratio over the subjects and its standard deviation."""
    first = group.first
    sections = [
        (section, [domain]) for section in ("pruned", "amplified") for domain in group.domains
    ]
    sections += [("_".join(domains), list(domains)) for domains in group.merged_domains]
    means: Means = {}
    for section, domains in sections:
        recipes = first[section][domains[0]] if section in first else first["merged"][section]
        for name in recipes:
            if name == "dense":
                continue
            by_domain = means.setdefault(section, {}).setdefault(name, {})
            for domain in domains:
                ratios = group.domain_ratios(section, name, domain)
                deviation = stdev(ratios.values) if len(ratios.values) > 1 else None
                by_domain[domain] = {"mean": ratios.mean, "deviation": deviation}
    return means
