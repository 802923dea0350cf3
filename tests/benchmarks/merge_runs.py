"""Run a merge as a user does: by mergekit's own command in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import page_cache
import yaml
from processes import Measured, measure
from random_models import Family

FLOOR = "floor"
"""Not a merge: plain copies that read all inputs twice and write one output."""

START = "start"
"""Not a merge: mergekit's command with --help, which shows its time to start."""

_CACHE_VARIABLE = "DPPA_MERGEKIT_CACHE"
_STATISTICS = re.compile(r"Delta statistics: ([0-9.]+) s")
_DENSITY = {"density": 0.2}
_AMPLIFIED = {**_DENSITY, "amplify_90": 1.5, "amplify_80": 1.2}


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        merge_method: Name of the method in a recipe.
        parameters: Parameters of each fine-tuned model, besides the weight.
        cached: Whether the cache has the statistics of an earlier merge.
        observed: Whether the models have activations.
    """

    merge_method: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    cached: bool = False
    observed: bool = False


METHODS = {
    "task_arithmetic": Method("task_arithmetic"),
    "dare_linear": Method("dare_linear", _DENSITY),
    "ties": Method("ties", _DENSITY),
    "della_linear": Method("della_linear", _DENSITY),
    "dppa": Method("dppa", _AMPLIFIED),
    "dppa cached": Method("dppa", _AMPLIFIED, cached=True),
    "dppa_ties": Method("dppa_ties", _AMPLIFIED),
    "dare_dpa": Method("dare_dpa", _AMPLIFIED),
    "dppa_regmean": Method("dppa_regmean", _DENSITY, observed=True),
    "dare_regmean": Method("dare_regmean", _DENSITY, observed=True),
    "dppa_regmean data-free": Method("dppa_regmean", _DENSITY),
}


@dataclass(frozen=True)
class MergeRunner:
    """Runs methods over the models of one family.

    Attributes:
        family: The family of the models.
        flags: Flags for mergekit-yaml.
        cold: Whether every run starts without the inputs in the page cache.
    """

    family: Family
    flags: Sequence[str] = ()
    cold: bool = False

    def measure(self, name: str) -> Measured:
        """Run and measure a method, the floor or the start."""
        output = self.family.path / "merged"
        shutil.rmtree(output, ignore_errors=True)
        environment = make_user_environment()
        if name == FLOOR:
            command = self._make_floor_command(output)
        elif name == START:
            command = [*find_mergekit_yaml(), "--help"]
        else:
            command = self._make_merge_command(METHODS[name], output)
            # With the cache on, all rounds after the first would use it.
            cached = METHODS[name].cached
            environment[_CACHE_VARIABLE] = str(self._cache.resolve()) if cached else "off"
        if self.cold:
            page_cache.drop(self.family.list_all_weight_files())
        else:
            os.sync()  # otherwise the run waits for the pending writes of others
        try:
            return measure(command, environment)
        finally:
            shutil.rmtree(output, ignore_errors=True)

    def fill_statistics_cache(self, name: str) -> bool:
        """Run a cached method once with an empty cache; return whether it filled the cache."""
        shutil.rmtree(self._cache, ignore_errors=True)
        self.measure(name)
        return self._cache.exists() and any(self._cache.iterdir())

    @property
    def _cache(self) -> Path:
        return self.family.path / "statistics_cache"

    def _make_floor_command(self, output: Path) -> list[str]:
        folders = [self.family.path / name for name in self.family.names]
        script = Path(__file__).with_name("floor.py")
        return [sys.executable, str(script), str(output), *map(str, folders)]

    def _make_merge_command(self, method: Method, output: Path) -> list[str]:
        recipe = self.family.path / "recipe.yml"
        recipe.write_text(
            yaml.safe_dump(self._make_recipe(method), sort_keys=False), encoding="utf-8"
        )
        # With -v, mergekit logs the time of the statistics.
        return [*find_mergekit_yaml(), str(recipe), str(output), "-v", *self.flags]

    def _make_recipe(self, method: Method) -> dict[str, object]:
        base, *fine_tuned = [str((self.family.path / name).resolve()) for name in self.family.names]
        return {
            "merge_method": method.merge_method,
            "base_model": base,
            "models": [
                {
                    "model": model,
                    "parameters": {
                        "weight": 0.3,
                        **method.parameters,
                        **(self._observe(model) if method.observed else {}),
                    },
                }
                for model in fine_tuned
            ],
        }

    def _observe(self, model: str) -> dict[str, str]:
        """Return the parameter that names a model's activations; write them if they are missing."""
        file = self.family.path / f"{Path(model).name}.activations.safetensors"
        if not file.exists():
            # A process of its own takes the memory that writing needs (see processes.py).
            script = Path(__file__).with_name("random_activations.py")
            subprocess.run([sys.executable, str(script), model, str(file)], check=True)
        return {"activations": str(file.resolve())}


def find_mergekit_yaml() -> list[str]:
    """Return the command beside this interpreter, whose environment may not be activated."""
    script = Path(sys.executable).with_name("mergekit-yaml")
    if script.exists():
        return [str(script)]
    return [sys.executable, "-m", "mergekit.scripts.run_yaml"]


def make_user_environment() -> dict[str, str]:
    """Return this process's environment variables without those that a user would not set."""
    dropped = {
        "DPPA_MERGEKIT_AUTOLOAD",  # without the plugin there is nothing to measure
        "PYTHONDONTWRITEBYTECODE",  # with it, every start compiles the same modules again
    }
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "HF_HUB_OFFLINE": "1"}  # a timed run must not wait for a network


def read_statistics_seconds(measured: Measured) -> float | None:
    """Return the time of the statistics that a run logged; None if it logged none."""
    found = _STATISTICS.findall(measured.stderr)
    return sum(map(float, found)) if found else None
