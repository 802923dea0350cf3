"""Compare `mergekit-dppa analyze` with a merge of the same recipe, as whole processes.

    python tests/benchmarks/analysis.py FOLDER --size 0.2B

Prints ratios to the merge's time and to its peak of allocated memory. Missing models are written to
FOLDER first.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from statistics import median

import click
import yaml
from merge_runs import MergeRunner, make_user_environment
from processes import measure
from random_models import SIZES, Family, write_missing

CACHE = "DPPA_MERGEKIT_CACHE"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--size", type=click.Choice(list(SIZES)), default="0.2B", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
def main(folder: Path, size: str, rounds: int) -> None:
    """Merge and analyze in alternation, and print medians."""
    family = write_missing(Family(folder, size))
    runner = MergeRunner(family)
    program = str(Path(sys.executable).with_name("mergekit-dppa"))
    cache = family.path / "analysis_cache"
    rows: dict[str, list[tuple[float, int]]] = {"merge": [], "analyze": [], "again": []}
    for _ in range(rounds):
        shutil.rmtree(cache, ignore_errors=True)
        merged = runner.measure("dppa")
        rows["merge"].append((merged.wall_seconds, merged.peak_anonymous_bytes))
        recipe = family.path / "recipe.yml"
        assert yaml.safe_load(recipe.read_text(encoding="utf-8"))["merge_method"] == "dppa"
        for name in ("analyze", "again"):
            environment = {**make_user_environment(), CACHE: str(cache.resolve())}
            analyzed = measure([program, "analyze", str(recipe.resolve())], environment)
            rows[name].append((analyzed.wall_seconds, analyzed.peak_anonymous_bytes))
    shutil.rmtree(cache, ignore_errors=True)
    seconds, memory = (median(column) for column in zip(*rows["merge"], strict=True))
    for name, measured in rows.items():
        own_seconds, own_memory = (median(column) for column in zip(*measured, strict=True))
        click.echo(
            f"{name:8} {own_seconds:6.1f} s, {own_seconds / seconds:.2f} x the merge's; "
            f"{own_memory / 1e9:.2f} GB, {own_memory / memory:.2f} x"
        )


if __name__ == "__main__":
    main()
