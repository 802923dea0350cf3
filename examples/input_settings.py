"""Try the settings of combinations by inputs on the models of six_experts.py.

    python examples/input_settings.py FOLDER --seed 0 --seed 1 --seed 2

FOLDER is that of six_experts.py. Each row departs from the first in what its name says. The table
on stdout shows mean Task-Ratios on the dev items: they chose the defaults, and test items did not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

import click
from contest import Row, read_results
from domains import TASKS
from evidence import format_cell
from scoring import GENERAL
from six_experts import ANSWER_TOKENS, EXPERTS, draw_prompts, make_command, make_contest, observe
from tqdm import tqdm

from dppa_mergekit.prompts import Prompt
from dppa_mergekit.report.markdown_tables import table

NUMBER = 25
"""Prompts that every expert is observed on."""

OWN = "their own answers"
PLAIN = "prompts alone"
GIVEN = "right answers"
OTHERS = "another expert's prompts"
NONE = "texts of no expert's task"


@dataclass(frozen=True)
class Setting:
    """One departure from moment_shrinkage 0.95, moment_ridge 0.01 and factors that are found.

    Attributes:
        label: Its name in the table.
        texts: The texts that experts are observed on.
        method: The merge method.
        shared: Parameters of the merge.
    """

    label: str
    texts: str = OWN
    method: str = "dppa_regmean"
    shared: Mapping[str, float] = field(default_factory=dict)


SETTINGS = [
    Setting("moment_shrinkage 0.95, moment_ridge 0.01"),
    *(
        Setting(f"moment_shrinkage {value:g}", shared={"moment_shrinkage": value})
        for value in (1.0, 0.99, 0.9, 0.8, 0.0)
    ),
    *(
        Setting(f"moment_ridge {value:g}", shared={"moment_ridge": value})
        for value in (0.0, 0.001, 0.03, 0.1, 1.0)
    ),
    *(
        Setting(f"amplify_dense {value:g}", shared={"amplify_dense": value})
        for value in (0.0, 1.5, 3.0)
    ),
    *(Setting(f"observed on {texts}", texts) for texts in (PLAIN, GIVEN, OTHERS, NONE)),
    *(
        Setting(
            f"moment_shrinkage {shrinkage:g}, moment_ridge 0.001",
            shared={"moment_shrinkage": shrinkage, "moment_ridge": 0.001},
        )
        for shrinkage in (1.0, 0.99)
    ),
    Setting("dare_regmean", method="dare_regmean"),
    *(
        Setting(
            f"dare_regmean, moment_shrinkage {shrinkage:g}, moment_ridge 0.001",
            method="dare_regmean",
            shared={"moment_shrinkage": shrinkage, "moment_ridge": 0.001},
        )
        for shrinkage in (0.99, 0.95)
    ),
]
DENSITIES = (1.0, 0.2, 0.1, 0.05, 0.02)


def draw_texts(texts: str) -> dict[str, list[Prompt]]:
    """Return expert -> the texts that it is observed on."""
    own = draw_prompts(NUMBER)
    names = list(own)
    if texts == OTHERS:
        return {name: own[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}
    if texts == GIVEN:
        given = {}
        for task in EXPERTS:
            random = Random(f"observed: {task.name}")
            items = [task.draw_for_training(random) for _ in range(NUMBER)]
            given[task.name] = [Prompt(item.prompt, item.answer) for item in items]
        return given
    if texts == NONE:
        (general,) = [task for task in TASKS if task.domain == GENERAL]
        random = Random("observed: general")
        return {
            name: [Prompt(general.draw_for_training(random).prompt) for _ in range(NUMBER)]
            for name in names
        }
    return own


def measure(folder: Path) -> None:
    """Add the mean Task-Ratio of every setting and density to the results of one seed."""
    kept = folder / "input_settings.json"
    contest = make_contest(folder)

    @cache
    def files(texts: str) -> dict[str, str]:
        output = folder / f"observed_{texts.replace(' ', '_')}.yml"
        return observe(output, draw_texts(texts), 0 if texts == PLAIN else ANSWER_TOKENS)

    rows = [(setting, density) for setting in SETTINGS for density in DENSITIES]
    for setting, density in tqdm(rows, desc=folder.name):
        results = read_results(kept)
        of_setting = results.setdefault(setting.label, {})
        if f"{density:g}" in of_setting:
            continue
        shared = {"moment_ridge": 0.01, **setting.shared, "activations": files(setting.texts)}
        merged = contest.merge(Row(setting.method, density), 1.0, shared)
        of_setting[f"{density:g}"], _ = contest.judge(merged, "dev")
        kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def print_table(folder: Path) -> None:
    """Print means and deviations over seeds."""
    of_seeds = [read_results(path) for path in sorted(folder.glob("seed_*/input_settings.json"))]
    lines = []
    for label in dict.fromkeys(setting.label for setting in SETTINGS):
        cells = []
        for density in DENSITIES:
            found = [results.get(label, {}).get(f"{density:g}") for results in of_seeds]
            ratios = [float(str(ratio)) for ratio in found if ratio is not None]
            cells.append(format_cell(ratios) if ratios else "")
        lines.append([label, *cells])
    head = ["setting", *(f"density {density:g}" for density in DENSITIES)]
    click.echo(table(head, lines), nl=False)


if __name__ == "__main__":
    make_command(
        "Merge six experts below FOLDER with several settings, and print mean Task-Ratios.",
        measure,
        print_table,
    )()
