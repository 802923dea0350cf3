"""Learn weights and factors of six experts by AdaMerging, coarse and fine, by several objectives.

    python examples/finer_weights.py FOLDER --seed 0 --seed 1 --seed 2

The experts are those of `six_experts.py`, which may share FOLDER. Every merge prunes to a density
of 0.2, and learns from 25 prompts of each expert's training, without evaluations on the way: the
last state counts. The table on stdout shows the mean Task-Ratio on the test parts of the tasks.
Finished rows are kept in FOLDER: the same command resumes, and several processes may share FOLDER,
each with its own seeds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean

import click
import torch
from contest import Contest, Result, Weights, read_results
from evidence import format_cell
from six_experts import draw_prompts, make_command, make_contest
from tqdm import tqdm

from dppa_mergekit import method_table
from dppa_mergekit.adamerging.descent import Descent
from dppa_mergekit.adamerging.weight_learning import learn_weights
from dppa_mergekit.live.loading import load_model
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.live.temporary_merge import merge_into_folder
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.report.markdown_tables import table

DENSITY, PROMPTS = 0.2, 25
STEPS, LEARNING_RATE = 100, 1e-2
START = 0.3
FLOAT32 = Placement(dtype=torch.float32)

GRANULARITIES = ("model", "block", "linear", "partition")
OBJECTIVES = ("entropy", "distill", "hidden")
METHODS = ("dppa", "dare_dpa", "dppa_regmean", "dare_regmean")


@dataclass(frozen=True)
class Row:
    """A merge, and how its weights or factors are learned.

    Attributes:
        method: The merge method.
        objective: The objective of AdaMerging.
        granularity: What has numbers of its own; `none` for the merge that learning starts from.
    """

    method: str
    objective: str
    granularity: str

    @property
    def key(self) -> str:
        """A name that no other row has."""
        return f"{self.method}, {self.objective}, {self.granularity}"


ROWS = [
    *(Row(method, "none", "none") for method in METHODS),
    *(
        Row(method, objective, granularity)
        for objective in ("hidden", "distill", "entropy")
        for method in METHODS
        for granularity in GRANULARITIES
        # Entropy needs no model that teaches; one sum shows what it lacks.
        if objective != "entropy" or method == "dppa"
    ),
]


def make_recipe(folder: Path, method: str, observed: Mapping[str, str]) -> Recipe:
    """Return the recipe that learning starts from.

    Args:
        folder: The folder of the experts.
        method: The merge method.
        observed: Expert -> the file of its activations.
    """
    by_inputs = method_table.is_by_inputs(method)
    models = []
    for name, path in observed.items():
        parameters: dict[str, object] = {"density": DENSITY}
        parameters |= {"activations": path} if by_inputs else {"weight": START}
        models.append({"model": str(folder / name), "parameters": parameters})
    return Recipe(
        {
            "merge_method": method,
            "base_model": str(folder / "base"),
            "models": models,
            "dtype": "bfloat16",
        }
    )


def merge(recipe: Recipe) -> Weights:
    """Return the weights of a merge."""
    with (
        tempfile.TemporaryDirectory() as workspace,
        merge_into_folder(recipe, Path(workspace)) as folder,
    ):
        model, _ = load_model(folder, FLOAT32)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def measure(folder: Path, contest: Contest, row: Row) -> Result:
    """Learn a merge, and score it on the test parts."""
    recipe = make_recipe(folder, row.method, contest.observe(PROMPTS))
    seconds = 0.0
    if row.objective != "none":
        prompts = {str(folder / name): texts for name, texts in draw_prompts(PROMPTS).items()}
        descent = Descent(STEPS, LEARNING_RATE, granularity=row.granularity, every=STEPS)
        learned = learn_weights(recipe, prompts, row.objective, descent, FLOAT32)
        recipe, seconds = learned.recipe, learned.states[-1].seconds
    _, found = contest.judge(merge(recipe), "test")
    return {"seconds": seconds, **found}


def measure_missing(folder: Path) -> None:
    """Measure the rows that the folder of a seed does not have yet."""
    kept = folder / "finer_weights.json"
    missing = [row for row in ROWS if row.key not in read_results(kept)]
    if not missing:
        return
    contest = make_contest(folder)
    for row in tqdm(missing, desc=folder.name):
        results = {**read_results(kept), row.key: measure(folder, contest, row)}
        kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def print_table(folder: Path) -> None:
    """Print the mean Task-Ratio of every merge, means and deviations over seeds."""
    of_seeds = [read_results(path) for path in sorted(folder.glob("seed_*/finer_weights.json"))]
    lines = []
    for method, objective in product(METHODS, OBJECTIVES):
        cells = [
            _cell(of_seeds, Row(method, objective, granularity)) for granularity in GRANULARITIES
        ]
        if any(cells):
            start = _cell(of_seeds, Row(method, "none", "none"))
            lines.append([method, objective, start, *cells])
    head = ["merge", "objective", "as it starts", *GRANULARITIES]
    click.echo(table(head, lines, names=2), nl=False)


def _cell(of_seeds: Sequence[Mapping[str, Result]], row: Row) -> str:
    ratios = [
        mean(results[row.key]["ratios"].values())  # type: ignore[attr-defined]
        for results in of_seeds
        if row.key in results
    ]
    return format_cell(ratios) if ratios else ""


if __name__ == "__main__":
    make_command(
        "Train six experts of one base below FOLDER, learn their merges, and print Task-Ratios.",
        measure_missing,
        print_table,
    )()
