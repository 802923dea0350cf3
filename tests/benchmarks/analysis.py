"""What `mergekit-dppa analyze` takes beside a merge of the same recipe, as whole processes.

    python tests/benchmarks/analysis.py FOLDER --size 0.2B

Ratios to the merge's time and to its peak of allocated memory. The models are made in FOLDER where
they are missing.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from statistics import median

import click
import yaml
from merge_runs import MergeRunner, user_environment
from processes import measure
from random_models import SIZES, Family, ensured

CACHE = "DPPA_MERGEKIT_CACHE"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--size", type=click.Choice(list(SIZES)), default="0.2B", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
def main(folder: Path, size: str, rounds: int) -> None:
    """Merge and analyze in turns, and print medians."""
    family = ensured(Family(folder, size))
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
            environment = {**user_environment(), CACHE: str(cache.resolve())}
            found = measure([program, "analyze", str(recipe.resolve())], environment)
            rows[name].append((found.wall_seconds, found.peak_anonymous_bytes))
    shutil.rmtree(cache, ignore_errors=True)
    seconds, memory = (median(each) for each in zip(*rows["merge"], strict=True))
    for name, measured in rows.items():
        of_time, of_memory = (median(each) for each in zip(*measured, strict=True))
        click.echo(
            f"{name:8} {of_time:6.1f} s, {of_time / seconds:.2f} x the merge's; "
            f"{of_memory / 1e9:.2f} GB, {of_memory / memory:.2f} x"
        )


if __name__ == "__main__":
    main()
